(function () {
  var svg = document.getElementById("graph");
  if (!svg) return;
  var view = document.getElementById("view"), about = document.getElementById("about");
  var box = { x: 0, y: 0, w: 900, h: 560 }, hidden = {}, words = "", picked = null;
  var dots = [].slice.call(svg.querySelectorAll(".dot")), ties = [].slice.call(svg.querySelectorAll(".tie"));
  var hint = about.textContent;

  function show() {
    svg.setAttribute("viewBox", [box.x, box.y, box.w, box.h].join(" "));
    svg.style.touchAction = box.w < 900 ? "none" : "pan-y";
  }
  function zoom(factor, px, py) {
    var w = Math.min(900, Math.max(180, box.w * factor)), h = w * 560 / 900;
    box.x = Math.min(900 - w, Math.max(0, px - (px - box.x) * w / box.w));
    box.y = Math.min(560 - h, Math.max(0, py - (py - box.y) * h / box.h));
    box.w = w; box.h = h; show();
  }
  function at(event) {
    var r = svg.getBoundingClientRect();
    return { x: box.x + (event.clientX - r.left) / r.width * box.w, y: box.y + (event.clientY - r.top) / r.height * box.h };
  }
  function draw() {
    var near = {};
    ties.forEach(function (t) {
      var on = picked && (t.dataset.a === picked || t.dataset.b === picked);
      t.classList.toggle("near", !!on);
      if (on) { near[t.dataset.a] = near[t.dataset.b] = 1; }
    });
    var gone = {};
    dots.forEach(function (d) {
      var out = hidden[d.dataset.front] || (words && (d.dataset.title + " " + d.textContent).toLowerCase().indexOf(words) < 0);
      if (out) gone[d.dataset.id] = 1;
      d.classList.toggle("dim", !!(out || (picked && d.dataset.id !== picked && !near[d.dataset.id])));
    });
    ties.forEach(function (t) {
      t.classList.toggle("dim", !!(gone[t.dataset.a] || gone[t.dataset.b] || (picked && !t.classList.contains("near"))));
    });
  }
  function pick(dot) {
    picked = dot ? dot.dataset.id : null;
    if (dot) {
      var count = ties.filter(function (t) { return t.dataset.a === picked || t.dataset.b === picked; }).length;
      about.textContent = dot.dataset.title + " — " + dot.dataset.verdict + ", tied to " + count + " paper" + (count === 1 ? "" : "s");
    } else { about.textContent = hint; }
    draw();
  }
  dots.forEach(function (dot) {
    var link = dot.closest("a");
    dot.addEventListener("pointerenter", function (e) { if (e.pointerType === "mouse") pick(dot); });
    dot.addEventListener("pointerleave", function (e) { if (e.pointerType === "mouse") pick(null); });
    link.addEventListener("focus", function () { pick(dot); });
    link.addEventListener("blur", function () { pick(null); });
    link.addEventListener("click", function (e) {
      if (moved) { e.preventDefault(); return; }
      if (touched && last !== dot.dataset.id) { e.preventDefault(); last = dot.dataset.id; pick(dot); }
    });
  });
  document.querySelectorAll(".tools button[data-front]").forEach(function (button) {
    button.addEventListener("click", function () {
      var off = !hidden[button.dataset.front];
      hidden[button.dataset.front] = off;
      button.setAttribute("aria-pressed", String(!off));
      draw();
    });
  });
  document.getElementById("find").addEventListener("input", function () { words = this.value.trim().toLowerCase(); draw(); });
  document.getElementById("closer").addEventListener("click", function () { zoom(0.7, box.x + box.w / 2, box.y + box.h / 2); });
  document.getElementById("whole").addEventListener("click", function () { box = { x: 0, y: 0, w: 900, h: 560 }; show(); });
  svg.addEventListener("wheel", function (e) {
    if (!e.ctrlKey && box.w >= 900 && e.deltaY > 0) return;
    var p = at(e); zoom(e.deltaY > 0 ? 1.15 : 0.87, p.x, p.y); e.preventDefault();
  }, { passive: false });
  var from = null, moved = false, touched = false, last = null;
  svg.addEventListener("pointerdown", function (e) { touched = e.pointerType !== "mouse"; from = { x: e.clientX, y: e.clientY, bx: box.x, by: box.y }; moved = false; });
  window.addEventListener("pointermove", function (e) {
    if (!from) return;
    var r = svg.getBoundingClientRect(), dx = (e.clientX - from.x) / r.width * box.w, dy = (e.clientY - from.y) / r.height * box.h;
    if (Math.abs(e.clientX - from.x) + Math.abs(e.clientY - from.y) > 6) moved = true;
    if (!moved || box.w >= 900) return;
    box.x = Math.min(900 - box.w, Math.max(0, from.bx - dx)); box.y = Math.min(560 - box.h, Math.max(0, from.by - dy)); show();
  });
  window.addEventListener("pointerup", function () { from = null; });
  svg.addEventListener("dragstart", function (e) { e.preventDefault(); });
})();

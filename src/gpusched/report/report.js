(function () {
  var root = document.documentElement;
  document.getElementById("theme").addEventListener("click", function () {
    var dark = root.dataset.theme ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  function show(figure, x, y, text) {
    var tip = figure.querySelector(".tip");
    if (!tip) { tip = document.createElement("div"); tip.className = "tip"; figure.appendChild(tip); }
    tip.textContent = text; tip.style.left = x + "px"; tip.style.top = y + "px"; tip.hidden = false;
  }
  function format(v) { return Number(v.toPrecision(4)).toString(); }
  document.querySelectorAll("svg[data-x]").forEach(function (svg) {
    var figure = svg.closest("figure");
    var dx = svg.dataset.x.split(",").map(Number), dy = svg.dataset.y.split(",").map(Number);
    svg.addEventListener("pointermove", function (event) {
      var box = svg.getBoundingClientRect(), scale = 640 / box.width;
      var px = (event.clientX - box.left) * scale, best = null;
      svg.querySelectorAll("polyline").forEach(function (line) {
        for (var i = 0; i < line.points.numberOfItems; i++) {
          var p = line.points.getItem(i), d = Math.abs(p.x - px)
            + Math.abs(p.y - (event.clientY - box.top) * scale) * 0.3;
          if (!best || d < best.d) best = { d: d, p: p, name: line.dataset.name };
        }
      });
      if (!best) return;
      var u = (best.p.x - 58) / 568, v = (256 - best.p.y) / 242;
      var x = dx[2] ? Math.pow(10, Math.log10(dx[0]) + u * Math.log10(dx[1] / dx[0]))
        : dx[0] + u * (dx[1] - dx[0]);
      show(figure, best.p.x / scale, svg.offsetTop + best.p.y / scale || best.p.y / scale + 24,
        best.name + ": " + format(x) + ", " + format(dy[0] + v * (dy[1] - dy[0])));
    });
    svg.addEventListener("pointerleave", function () {
      var tip = figure.querySelector(".tip"); if (tip) tip.hidden = true;
    });
  });
  root.dataset.width = root.scrollWidth + "/" + root.clientWidth;
})();

(function () {
  "use strict";
  var root = document.documentElement, SVG = "http://www.w3.org/2000/svg";
  document.getElementById("theme").addEventListener("click", function () {
    var dark = root.dataset.theme ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  function byId(id) { return document.getElementById(id); }
  function node(kind, text, name) {
    var made = document.createElement(kind);
    if (text !== undefined && text !== null) made.textContent = text;
    if (name) made.className = name;
    return made;
  }
  function drawn(kind, attributes, text) {
    var made = document.createElementNS(SVG, kind);
    for (var key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function short(v) {
    if (v === null || v === undefined || isNaN(v)) return "–";
    if (v === 0) return "0";
    if (Math.abs(v) >= 1e6) return Number((v / 1e6).toPrecision(3)) + " M";
    if (Math.abs(v) >= 1e4) return Number((v / 1e3).toPrecision(3)) + " k";
    return String(Number(v.toPrecision(3)));
  }
  function seconds(v) {
    if (v === null || v === undefined) return "–";
    if (v === 0) return "0";
    return v < 1 ? short(v * 1e3) + " ms" : short(v) + " s";
  }
  function percent(v) { return v === null ? "–" : (v * 100).toFixed(v > 0.9995 || v < 0.9 ? 0 : 1) + " %"; }
  function duration(s) {
    if (s < 120) return Math.round(s) + " s";
    if (s < 7200) return Math.round(s / 60) + " min";
    return s < 172800 ? Math.round(s / 3600) + " h" : Math.round(s / 86400) + " days";
  }
  function nice(top) {
    if (!(top > 0)) return 1;
    var step = Math.pow(10, Math.floor(Math.log10(top)));
    return [1, 2, 2.5, 5, 10].map(function (m) { return m * step; })
      .filter(function (v) { return v >= top * 0.999; })[0] || 10 * step;
  }
  // Share of the requests of the last 30 s that met their objective, at each second.
  function attained(rows, index, window) {
    var met = 0, missed = 0;
    return rows.map(function (row, i) {
      met += row.met[index] || 0; missed += row.missed[index] || 0;
      if (i >= window) { met -= rows[i - window].met[index] || 0; missed -= rows[i - window].missed[index] || 0; }
      return met + missed > 0 ? met / (met + missed) : null;
    });
  }
  function column(rows, key) { return rows.map(function (row) { return row[key]; }); }
  function latest(values) {
    for (var i = values.length - 1; i >= 0; i--) if (values[i] !== null) return values[i];
    return null;
  }
  var WIDE = 640, HIGH = 220, LEFT = 84, RIGHT = 12, TOP = 12, BELOW = 28, SPAN = 300;
  function chart(title, lines, show, now, top) {
    var figure = node("figure"), caption = node("figcaption", title);
    caption.appendChild(node("span", lines.map(function (line) {
      return (lines.length > 1 ? line.name + " " : "") + show(latest(line.values));
    }).join(" · "), "now"));
    figure.appendChild(caption);
    var most = top || nice(Math.max.apply(null, [0].concat(lines.map(function (line) {
      return Math.max.apply(null, [0].concat(line.values.filter(function (v) { return v !== null; })));
    }))));
    var svg = drawn("svg", { viewBox: "0 0 " + WIDE + " " + HIGH, role: "img", "aria-label": title });
    function y(v) { return HIGH - BELOW - v / most * (HIGH - BELOW - TOP); }
    function x(t) { return LEFT + (1 - (now - t) / SPAN) * (WIDE - LEFT - RIGHT); }
    [0, 0.5, 1].forEach(function (part) {
      var at = y(part * most);
      svg.appendChild(drawn("line", { "class": "grid", x1: LEFT, x2: WIDE - RIGHT, y1: at, y2: at }));
      svg.appendChild(drawn("text", { "class": "tick", x: LEFT - 8, y: at + 4, "text-anchor": "end" },
        show(part * most)));
    });
    [5, 4, 3, 2, 1, 0].forEach(function (minutes) {
      svg.appendChild(drawn("text", { "class": "tick", x: x(now - 60 * minutes), y: HIGH - 6,
        "text-anchor": minutes === 0 ? "end" : minutes === 5 ? "start" : "middle" },
        minutes ? "−" + minutes + " min" : "now"));
    });
    lines.forEach(function (line, i) {
      var points = [], previous = null;
      function flush() {
        if (points.length === 1) points.push([points[0][0] + 1.5, points[0][1]]);
        if (points.length) svg.appendChild(drawn("polyline", { "class": "line c" + i % 6,
          points: points.map(function (p) { return p[0].toFixed(1) + "," + p[1].toFixed(1); }).join(" ") }));
        points = [];
      }
      line.values.forEach(function (v, j) {
        var t = line.times[j];
        if (v === null || x(t) < LEFT) return;
        if (previous !== null && t - previous > 15) flush();
        previous = t; points.push([x(t), y(Math.min(v, most))]);
      });
      flush();
    });
    figure.appendChild(svg);
    if (lines.length > 1) {
      var legend = node("div", null, "legend");
      lines.forEach(function (line, i) {
        var key = node("span", null, "key"); key.appendChild(node("i", null, "c" + i % 6));
        key.appendChild(document.createTextNode(line.name)); legend.appendChild(key);
      });
      figure.appendChild(legend);
    }
    return figure;
  }
  function meter(share, text, kind) {
    var cell = node("td"), bar = node("div", null, "meter" + kind), fill = node("i");
    fill.style.width = Math.max(0, Math.min(1, share)) * 100 + "%";
    bar.appendChild(fill); bar.appendChild(node("b", text)); cell.appendChild(bar);
    return cell;
  }
  function row(cells) {
    var made = node("tr");
    cells.forEach(function (cell, i) {
      made.appendChild(cell instanceof Node ? cell : node(i ? "td" : "th", cell));
    });
    return made;
  }
  function fill(table, rows) { byId(table).tBodies[0].replaceChildren.apply(byId(table).tBodies[0], rows); }
  function render(s) {
    var rows = s.history, times = column(rows, "time_s"), now = s.now_s, last = rows.slice(-5);
    function mean(key) {
      return last.length ? column(last, key).reduce(function (a, b) { return a + b; }, 0) / last.length : 0;
    }
    function sum(key) { return column(rows.slice(-60), key).reduce(function (a, b) { return a + b; }, 0); }
    function line(name, values) { return { name: name, values: values, times: times }; }
    var perClass = s.classes.map(function (name, i) { return line(name, attained(rows, i, 30)); });
    byId("title").textContent = "Gateway of " + s.plan.model;
    byId("plan").textContent = "admission " + s.plan.admission + ", routing " + s.plan.routing
      + ", up for " + duration(now - s.started_s) + ", version " + s.version;
    byId("slo").replaceChildren.apply(byId("slo"), Object.keys(s.plan.objectives).map(function (name) {
      return node("li", (s.classes.length > 1 ? name + ": " : "") + s.plan.objectives[name]);
    }));
    var met = 0, judged = 0;
    rows.slice(-60).forEach(function (r) {
      r.met.forEach(function (v) { met += v; judged += v; }); r.missed.forEach(function (v) { judged += v; });
    });
    var tiles = [["answers/s", short(mean("requests_per_s"))], ["tokens/s", short(mean("tokens_per_s"))],
      ["TTFT p50", seconds(latest(column(rows, "ttft_p50_s")))],
      ["TTFT p95", seconds(latest(column(rows, "ttft_p95_s")))],
      ["TPOT p50", seconds(latest(column(rows, "tpot_p50_s")))],
      ["met, last minute", percent(judged ? met / judged : null)],
      ["open", short(s.open)], ["held", short(s.held)],
      ["refused, last minute", short(sum("refused"))], ["failed, last minute", short(sum("failed"))],
      ["memory", short(s.rss_bytes / 1e6) + " MB"]];
    byId("tiles").replaceChildren.apply(byId("tiles"), tiles.map(function (tile) {
      var box = node("div"); box.appendChild(node("b", tile[1])); box.appendChild(node("span", tile[0]));
      return box;
    }));
    byId("charts").replaceChildren(
      chart("Answers per second", [line("answers", column(rows, "requests_per_s"))], short, now),
      chart("Tokens of ended answers per second", [line("tokens", column(rows, "tokens_per_s"))], short, now),
      chart("TTFT", [line("p50", column(rows, "ttft_p50_s")), line("p95", column(rows, "ttft_p95_s"))],
        seconds, now),
      chart("TPOT, median", [line("p50", column(rows, "tpot_p50_s"))], seconds, now),
      chart("Requests", [line("open", column(rows, "open")), line("held", column(rows, "held"))], short, now),
      chart("Objectives met, over 30 s", perClass, percent, now, 1));
    var load = Math.max.apply(null, [1].concat(column(s.engines, "outstanding")));
    fill("engines", s.engines.map(function (e) {
      var word = e.ejected ? "ejected" : e.up ? (e.role === "mixed" ? "up" : "up, " + e.role) : "down";
      var state = node("td"); state.appendChild(node("span", word, e.up && !e.ejected ? "state" : "state out"));
      return row([e.url.replace(/^https?:\/\//, ""), state, meter(e.outstanding / load, short(e.outstanding), ""),
        short(e.running), short(e.waiting),
        e.kv_usage === null ? "–" : meter(e.kv_usage, percent(e.kv_usage), " kv"),
        short(e.requests), short(e.failures), short(e.ejections)]);
    }));
    fill("refusals", s.refusals.slice().reverse().map(function (r) {
      return row([new Date(r.time_s * 1e3).toLocaleTimeString(), r.status || "–", r.reason, r.client || "–", short(r.count)]);
    }));
    byId("none").hidden = s.refusals.length > 0;
    byId("refusals").hidden = s.refusals.length === 0;
    warn(s.problems.join("; "));
    root.dataset.ready = "1"; root.dataset.width = root.scrollWidth + "/" + root.clientWidth;
  }
  function warn(text) { byId("stale").textContent = text; byId("stale").hidden = !text; }
  var heard = Date.now();
  function poll() {
    fetch("status.json", { cache: "no-store" }).then(function (answer) {
      if (!answer.ok) throw new Error("status " + answer.status);
      return answer.json();
    }).then(function (status) { heard = Date.now(); render(status); }).catch(function (error) {
      warn("No news from the gateway for " + Math.round((Date.now() - heard) / 1e3) + " s (" + error.message + ").");
    }).finally(function () { setTimeout(poll, document.hidden ? 5000 : 1000); });
  }
  poll();
})();

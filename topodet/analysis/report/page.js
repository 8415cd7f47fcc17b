"use strict";
// Every cut was computed beforehand (topodet.connectivity.cut): this only shows the one that is asked for.
window.addEventListener("error", (event) => {
  const failure = document.getElementById("failure");
  failure.hidden = false;
  failure.textContent = `The script of this page failed (${event.message}); it shows the whole network.`;
});

const data = JSON.parse(document.getElementById("data").textContent);
const per = document.getElementById("per");
const threshold = document.getElementById("threshold");
const figures = (kind) => [...document.querySelectorAll(`figure.${kind} svg`)];
const graphs = figures("graph");
const heats = figures("heat");
const degrees = figures("degrees");
const count = (number) => number.toLocaleString("en");
const short = (number) => String(Number(number.toPrecision(3)));

let cut;

function show() {
  cut = data.cuts[per.value][Number(threshold.value)];
  const whole = data.cuts[per.value][0];
  const words = short(cut.threshold);
  document.getElementById("value").textContent = words;
  threshold.setAttribute("aria-valuetext", `${words}, ${Math.round(100 * cut.removed)} % of the edges gone`);
  const of = (name, unit) => {
    if (cut[name] === null) return [];
    const share = whole[name] ? `${(100 * cut[name] / whole[name]).toFixed(1)} %` : "none";
    return [`${count(cut[name])} ${unit} (${share})`];
  };
  document.getElementById("left").textContent = [
    ...of("edges", "edges"), ...of("nodes", "nodes"), ...of("parameters", "parameters"),
    ...of("multiply_adds", "multiply-adds"),
  ].join(" · ");
  document.getElementById("disconnected").textContent = cut.disconnected.length
    ? `the input no longer reaches the output in ${cut.disconnected.join(", ")}; its strongest path is kept (dotted)` : "";
  data.stages.forEach((stage, k) => showStage(stage, cut.stages[k], k));
}

function showStage(stage, left, k) {
  const graph = graphs[k].querySelector(".edges").children;
  const dots = graphs[k].querySelector(".nodes").children;
  const cells = heats[k].querySelector(".cells").children;
  const minus = heats[k].querySelector(".minus").children;
  const inputs = new Array(dots.length).fill(0);
  const outputs = new Array(dots.length).fill(0);
  stage.edges.forEach(([j, i], e) => {
    const gone = left.kept[e] === "0";
    for (const part of [graph[e], cells[e], minus[e]]) part.classList.toggle("cut", gone);
    graph[e].classList.toggle("only", left.kept[e] === "2");
    if (!gone) {
      inputs[i] += 1;
      outputs[j] += 1;
    }
  });
  const unit = Number(degrees[k].dataset.unit);
  [...dots].forEach((dot, node) => {
    dot.classList.toggle("cut", inputs[node] + outputs[node] === 0);
    const [up, down] = [".in", ".out"].map((kind) => degrees[k].querySelector(kind).children[node]);
    up.setAttribute("y", 70 - unit * inputs[node]);
    up.setAttribute("height", unit * inputs[node]);
    down.setAttribute("height", unit * outputs[node]);
  });
  const world = left.small_worldness === null ? "" : `, small-world-ness ${short(left.small_worldness)}`;
  graphs[k].parentNode.querySelector(".left").textContent = `${left.edges} of ${stage.edges.length} edges, ${left.nodes} of ${dots.length} nodes${world}`;
}

function fill(wanted) {
  const rows = data.cuts[per.value];
  threshold.max = rows.length - 1;
  threshold.disabled = rows.length === 1; // all edges are as strong as each other
  let best = 0;
  rows.forEach((row, k) => {
    if (Math.abs(row.threshold - wanted) < Math.abs(rows[best].threshold - wanted)) best = k;
  });
  threshold.value = best;
  show();
}

heats.forEach((heat, k) => {
  const { edges, alpha } = data.stages[k];
  const cells = heat.querySelector(".cells").children;
  const graph = graphs[k].querySelector(".edges").children;
  const output = heat.parentNode.querySelector("output");
  let at = -1;
  const point = (e) => {
    for (const part of at < 0 ? [] : [cells[at], graph[at]]) part.classList.remove("on");
    at = e;
    for (const part of [cells[at], graph[at]]) part.classList.add("on");
    const [j, i] = edges[e];
    const state = { 0: ", cut", 1: "", 2: ", kept as the only way" }[cut.stages[k].kept[e]];
    output.textContent = `${j} → ${i}: alpha ${alpha[e].toPrecision(4)}${state}`;
  };
  const under = (event) => {
    const e = [...cells].indexOf(event.target);
    if (e >= 0) point(e);
  };
  heat.addEventListener("pointerover", under);
  heat.addEventListener("click", under);
  heat.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    point((Math.max(at, step < 0 ? 0 : -1) + step + edges.length) % edges.length);
  });
});

const epoch = document.getElementById("epoch");
if (epoch) {
  const maps = figures("epochs");
  epoch.addEventListener("input", () => {
    const at = Number(epoch.value);
    document.getElementById("epoch-value").textContent = data.epochs[at];
    maps.forEach((map, k) => {
      const groups = [".cells", ".minus"].map((kind) => map.querySelector(kind).children);
      data.levels[at][k].forEach((level, e) => groups.forEach((group) => group[e].setAttribute("class", level)));
    });
  });
}

const asked = new URLSearchParams(location.hash.slice(1));
if (Object.hasOwn(data.cuts, asked.get("per"))) per.value = asked.get("per");
per.addEventListener("change", () => fill(0));
threshold.addEventListener("input", show);
fill(Number(asked.get("threshold")) || 0);

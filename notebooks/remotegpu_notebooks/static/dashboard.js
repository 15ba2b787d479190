// Draws the view that formatting.py made. Knows no units and no server: it never makes a request, and every
// text goes through textContent.

const PING_MS = 5000;
const TICK_MS = 1000;
const CHART = { width: 240, height: 44, shortest_s: 60 };
const SVG = "http://www.w3.org/2000/svg";
const shown = new WeakMap(); // model -> how many views show it

function node(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function duration(seconds) {
  const total = Math.max(0, Math.floor(seconds));
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} min`;
  if (total < 48 * 3600) return `${Math.floor(total / 3600)} h ${Math.floor((total % 3600) / 60)} min`;
  return `${Math.floor(total / 86400)} d ${Math.floor((total % 86400) / 3600)} h`;
}

// Each part is built once and returns a function that shows new values, so that bars move instead of jumping.

function meter(kind) {
  const label = node("span", "rg-label");
  const text = node("span", "rg-value");
  const fill = node("div", "rg-fill");
  const track = node("div", "rg-track", fill);
  track.setAttribute("role", "meter");
  track.setAttribute("aria-valuemin", "0");
  track.setAttribute("aria-valuemax", "100");
  const root = node("div", `rg-meter rg-meter-${kind}`, node("div", "rg-line", label, text), track);
  const show = (values) => {
    label.textContent = values.label;
    if (values.scope && values.scope !== "yours") label.append(node("span", "rg-scope", values.scope));
    text.textContent = values.text;
    root.dataset.tone = values.tone ?? "ok";
    const known = values.fraction !== null && values.fraction !== undefined;
    root.classList.toggle("rg-open", !known);
    fill.style.width = known ? `${values.fraction * 100}%` : "0";
    track.setAttribute("aria-label", values.label);
    track.setAttribute("aria-valuetext", values.text);
    if (known) track.setAttribute("aria-valuenow", String(Math.round(values.fraction * 100)));
    else track.removeAttribute("aria-valuenow");
  };
  return { root, show };
}

function sparkline() {
  const root = svg("svg", {
    class: "rg-spark",
    viewBox: `0 0 ${CHART.width} ${CHART.height}`,
    preserveAspectRatio: "none",
    role: "img",
  });
  for (const share of [0.25, 0.5, 0.75]) {
    const y = share * CHART.height;
    root.append(svg("line", { class: "rg-grid", x1: 0, x2: CHART.width, y1: y, y2: y }));
  }
  const area = svg("path", { class: "rg-area" });
  const memory = svg("path", { class: "rg-memory-line" });
  const line = svg("path", { class: "rg-use-line" });
  root.append(area, memory, line);
  const span = node("span", "rg-span");
  const empty = node("div", "rg-no-history", "No history yet");
  const box = node("div", "rg-chart", root, empty, span);
  const show = (history) => {
    const span_s = Math.max(CHART.shortest_s, ...history.map((point) => point.age_s));
    const use = runs(history, "utilization", span_s);
    area.setAttribute("d", use.map(areaPath).join(""));
    line.setAttribute("d", use.map(linePath).join(""));
    memory.setAttribute("d", runs(history, "memory", span_s).map(linePath).join(""));
    empty.hidden = history.length > 1;
    span.textContent = history.length > 1 ? `last ${duration(span_s)}` : "";
    root.setAttribute("aria-label", `Utilisation and memory over the last ${duration(span_s)}`);
  };
  return { root: box, show };
}

// Stretches of neighbouring points that have a value; what was not measured stays a gap.
function runs(history, key, span_s) {
  const found = [];
  let open = null;
  for (const point of history) {
    if (point[key] === null || point[key] === undefined) {
      open = null;
      continue;
    }
    if (open === null) found.push((open = []));
    const x = CHART.width * (1 - point.age_s / span_s);
    open.push([x.toFixed(1), (CHART.height - 2 - point[key] * (CHART.height - 4)).toFixed(1)]);
  }
  return found;
}

function linePath(points) {
  if (points.length === 1) return `M${points[0][0]} ${points[0][1]}h0.5`;
  return points.map(([x, y], index) => `${index === 0 ? "M" : "L"}${x} ${y}`).join("");
}

function areaPath(points) {
  const first = points[0][0];
  const last = points[points.length - 1][0];
  return `${linePath(points)}L${last} ${CHART.height}L${first} ${CHART.height}Z`;
}

function gpuCard(index) {
  const name = node("span", "rg-model");
  const total = node("span", "rg-total");
  const badge = node("span", "rg-badge", "simulated");
  const use = meter("use");
  const memory = meter("memory");
  const chart = sparkline();
  const facts = node("div", "rg-facts");
  const root = node(
    "section",
    "rg-gpu",
    node("header", "rg-gpu-head", node("span", "rg-index", String(index)), name, total, badge),
    node("div", "rg-pair", use.root, memory.root),
    chart.root,
    facts,
  );
  const show = (gpu) => {
    name.textContent = gpu.model;
    name.title = gpu.uuid;
    total.textContent = gpu.total;
    badge.hidden = !gpu.simulated;
    root.setAttribute("aria-label", `GPU ${index}: ${gpu.model}`);
    use.show(gpu.utilization);
    memory.show(gpu.memory);
    chart.show(gpu.history);
    facts.replaceChildren(
      ...gpu.facts.map((fact) =>
        node("div", "rg-fact", node("span", "rg-label", fact.label), node("span", "rg-value", fact.text)),
      ),
    );
  };
  return { root, show };
}

// As many parts as there are values; those that exist already are kept.
function list(className, title, make) {
  const items = node("div", className);
  const root = node("div", "rg-section", node("div", "rg-caption", title), items);
  const parts = [];
  const show = (values) => {
    while (parts.length > values.length) parts.pop().root.remove();
    while (parts.length < values.length) {
      const part = make(parts.length);
      parts.push(part);
      items.append(part.root);
    }
    items.dataset.count = String(values.length);
    values.forEach((value, index) => parts[index].show(value));
    root.hidden = values.length === 0;
  };
  return { root, show };
}

function card() {
  const badge = node("span", "rg-badge", "simulated GPUs");
  const state = node("span", "rg-state");
  const uptime = node("span", "rg-uptime");
  const notice = node("div", "rg-notice");
  notice.setAttribute("role", "status");
  const empty = node("div", "rg-empty");
  const quota = list("rg-quota", "Quota", () => meter("quota"));
  const gpus = list("rg-gpus", "GPUs of this environment", gpuCard);
  const load = list("rg-load", "CPU and memory of this environment", () => meter("load"));
  const mark = node("span", "rg-mark");
  mark.setAttribute("aria-hidden", "true");
  const root = node(
    "div",
    "remotegpu-dashboard",
    node("header", "rg-head", mark, node("span", "rg-title", "RemoteGPU"), badge, node("span", "rg-gap"), uptime, state),
    notice,
    quota.root,
    gpus.root,
    empty,
    load.root,
  );
  root.setAttribute("role", "group");
  root.setAttribute("aria-label", "RemoteGPU: quota and GPUs of this environment");
  return { root, badge, state, uptime, notice, empty, quota, gpus, load };
}

const STATES = { live: "live", stale: "not current", connecting: "connecting" };

function show(parts, view) {
  parts.root.dataset.state = view.state;
  parts.state.textContent = STATES[view.state] ?? view.state;
  parts.badge.hidden = !view.simulated;
  parts.quota.show(view.quota);
  parts.gpus.show(view.gpus);
  parts.load.show(view.load);
  parts.empty.hidden = !view.empty;
  parts.empty.textContent = view.empty ?? "";
}

// What grows by itself between two messages.
function tick(parts, view, elapsed_s) {
  const up = view.uptime_s;
  parts.uptime.textContent = up === null ? "" : `running for ${duration(up + elapsed_s)}`;
  const old = view.age_s === null ? "" : ` Last values from ${duration(view.age_s + elapsed_s)} ago.`;
  const text = view.notice ? `${view.notice}${old}` : "";
  if (parts.notice.textContent !== text) parts.notice.textContent = text;
  parts.notice.hidden = !text;
}

function render({ model, el }) {
  const parts = card();
  let received = performance.now();
  const elapsed_s = () => (performance.now() - received) / 1000;
  const update = () => {
    received = performance.now();
    const view = model.get("view");
    show(parts, view);
    tick(parts, view, 0);
  };
  // A hidden tab asks for nothing: the kernel pauses after a while and goes on with the next ping.
  const ping = () => {
    if (!document.hidden) model.send({ type: "ping" });
  };
  update();
  el.append(parts.root);
  ping();
  const timers = [
    setInterval(ping, PING_MS),
    setInterval(() => tick(parts, model.get("view"), elapsed_s()), TICK_MS),
  ];
  model.on("change:view", update);
  document.addEventListener("visibilitychange", ping);
  shown.set(model, (shown.get(model) ?? 0) + 1);
  return () => {
    timers.forEach(clearInterval);
    model.off("change:view", update);
    document.removeEventListener("visibilitychange", ping);
    shown.set(model, shown.get(model) - 1);
    if (shown.get(model) === 0) model.send({ type: "gone" });
  };
}

export default { render };

// ---- what is chosen

const SVG = "http://www.w3.org/2000/svg";
const histogramOf = (bins) => {
  const svg = document.createElementNS(SVG, "svg"), most = Math.max(...bins, 1);
  svg.setAttribute("class", "histogram");
  svg.setAttribute("viewBox", `0 0 ${bins.length} 20`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("height", "80");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `Histogram: ${bins.join(", ")}`);
  bins.forEach((each, number) => {
    const rect = document.createElementNS(SVG, "rect"), high = each ? Math.max((20 * each) / most, 0.4) : 0;
    for (const [key, value] of Object.entries({ x: number + 0.05, y: 20 - high, width: 0.9, height: high })) rect.setAttribute(key, value);
    svg.append(rect);
  });
  return svg;
};
const choose = (node) => {
  state.chosen = node;
  const detail = byId("detail"), facts = make("dl");
  const fact = (title, text) => { if (text !== "" && text !== null) facts.append(make("dt", "", title), make("dd", "", text)); };
  byId("what").textContent = node.tensor ? "Tensor" : node === root ? "Everything" : "Container";
  detail.replaceChildren(facts);
  const tensor = node.tensor;
  fact("name", node === root ? "" : nameOf(node));
  if (tensor) {
    fact("dtype", data.dtypes[tensor.dtype]);
    fact("shape", `[${tensor.shape.join(", ")}]`);
    fact("elements", count(volume(tensor.shape)));
  } else fact("tensors", count(node.count));
  fact("size", `${size(node.bytes)}, ${count(node.bytes)} bytes`);
  if (node !== root) fact("of all", share(node));
  if (tensor) {
    fact("file", tensor.file < 0 ? "" : data.files[tensor.file]);
    fact("bytes", tensor.begin === null ? "" : `[${count(tensor.begin)}, ${count(tensor.begin + tensor.bytes)})`);
    fact("", tensor.notes);
    if (tensor.statistics) {
      ["min", "max", "mean", "std"].forEach((title, at) => fact(title, digits(tensor.statistics[at])));
      ["NaN", "infinite"].forEach((title, at) => fact(title, count(tensor.statistics[4 + at])));
      if (tensor.statistics[6].length) detail.append(histogramOf(tensor.statistics[6]));
    }
    if (tensor.layout >= 0) {
      const layout = layouts[tensor.layout];
      fact("sharding", layout.text);
      if (isRegular(layout) && hasShards) {
        const canvas = make("canvas", "grid");
        const grid = layout.grid || (layout.grid = gridOf(layout));
        drawGrid(canvas, layout, 312, Math.min(Math.max(grid.rows * 26, 44), 312), true);
        canvas.setAttribute("role", "img");
        canvas.setAttribute("aria-label", "The parts of the tensor and their devices, which the list below names");
        const parts = make("dl");
        for (const [begin, end, devices] of layout.parts.slice(0, MOST_PARTS)) {
          parts.append(make("dt", "", `[${begin.map((from, axis) => (from === 0 && end[axis] === layout.shape[axis] ? ":" : `${from}:${end[axis]}`)).join(", ")}]`));
          parts.append(make("dd", "", devices.slice(0, 32).map((device) => data.devices[device]).join(", ") + (devices.length > 32 ? ` … ${devices.length - 32} more` : "")));
        }
        detail.append(canvas);
        if (grid.said) detail.append(make("p", "", grid.said));
        detail.append(parts);
        if (layout.parts.length > MOST_PARTS) detail.append(make("p", "", `… ${count(layout.parts.length - MOST_PARTS)} more parts`));
      }
    }
  }
  render();
  mark();
};

// ---- devices

const listDevices = () => {
  if (!hasShards) return;
  const held = new Array(data.devices.length).fill(0), byLayout = new Map();
  for (const tensor of tensors) if (tensor.layout >= 0) byLayout.set(tensor.layout, (byLayout.get(tensor.layout) || 0) + tensor.bytes);
  for (const [layout, bytes] of byLayout) for (const [device, part] of layouts[layout].held) held[device] += part * bytes;
  const most = Math.max(...held, 1), items = [];
  data.devices.slice(0, MOST_DEVICES).forEach((name, device) => {
    const button = make("button", "device"), bar = make("span"), filled = make("div", "share");
    button.type = "button";
    button.setAttribute("aria-pressed", device === state.device);
    filled.style.width = `${(100 * held[device]) / most}%`;
    filled.style.background = deviceColour(device);
    bar.append(filled);
    button.append(make("span", "", name), bar, make("span", "number", size(Math.round(held[device]))));
    button.addEventListener("click", () => {
      state.device = device === state.device ? -1 : device;
      listDevices();
      choose(state.chosen || root);
      drawMap();
    });
    items.push(button);
  });
  if (data.devices.length > MOST_DEVICES) items.push(make("p", "", `… ${count(data.devices.length - MOST_DEVICES)} more devices`));
  byId("device-list").replaceChildren(...items);
  byId("devices").hidden = false;
};

// ---- the search

const matcher = (query) => {
  const parts = query.toLowerCase().split(/\s+/).filter(Boolean);
  const tests = parts.map((part) => {
    if (!part.includes("*")) return (name) => name.includes(part);
    const pattern = new RegExp(`^${part.split(/\*+/).map((piece) => piece.replace(/[.+?^${}()|[\]\\]/g, "\\$&")).join("[^]*")}$`);
    return (name) => pattern.test(name);
  });
  return (name) => tests.every((test) => test(name));
};
const search = () => {
  const query = byId("search").value.trim();
  state.wanted = null;
  byId("found").textContent = "";
  if (query) {
    const matches = matcher(query), wanted = new Set();
    let found = 0, bytes = 0;
    for (const node of nodes) {
      if (!node.tensor || !matches(node.tensor.name.toLowerCase())) continue;
      found += 1;
      bytes += node.bytes;
      for (let each = node; each && !wanted.has(each); each = each.parent) wanted.add(each);
    }
    state.wanted = wanted;
    byId("found").textContent = `${count(found)} of ${count(tensors.length)} tensors, ${size(bytes)}`;
  }
  tree.scrollTop = 0;
  list();
  drawMap();
};
let waiting = 0;
byId("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 80); });
const openAll = (isOpen) => { for (const node of nodes) node.open = isOpen; tree.scrollTop = 0; list(); };
byId("open").addEventListener("click", () => openAll(true));
byId("shut").addEventListener("click", () => openAll(false));

// ---- all of it

const listLegend = () => {
  const legend = byId("legend"), bytes = data.dtypes.map(() => 0);
  for (const tensor of tensors) bytes[tensor.dtype] += tensor.bytes;
  legend.replaceChildren();
  data.dtypes.slice(0, 40).forEach((dtype, number) => {
    const item = make("span"), chip = make("span", "chip");
    chip.style.background = colours[number];
    item.append(chip, `${dtype} · ${size(bytes[number])}`);
    legend.append(item);
  });
};
const drawAll = () => {
  colours = dtypeColours();
  listLegend();
  listDevices();
  choose(state.chosen || root);
  drawMap();
};
byId("drawn").hidden = false;
list();
drawAll();
zoomTo(root);
dark.addEventListener("change", drawAll);
addEventListener("resize", () => requestAnimationFrame(() => { drawMap(); render(); }));
document.documentElement.dataset.drawn = "true";

// ---- the map

const map = byId("map"), tip = byId("tip");
let boxes = [];

// Bruls, Huizing and van Wijk: squarified treemaps. `place` is called with each child and its box.
const squarify = (children, x, y, width, height, place) => {
  let rest = children.reduce((sum, child) => sum + child.bytes, 0);
  for (let first = 0; first < children.length;) {
    if (width < LEAST || height < LEAST) return;
    const short = Math.min(width, height), scale = (width * height) / rest;
    let bytes = 0, worst = Infinity, next = first;
    for (; next < children.length; next += 1) {
      const area = (bytes + children[next].bytes) * scale, square = area * area;
      const ratio = Math.max((short * short * children[first].bytes * scale) / square, square / (short * short * children[next].bytes * scale));
      if (ratio > worst) break;
      worst = ratio;
      bytes += children[next].bytes;
    }
    const thick = (bytes * scale) / short;
    for (let at = 0; first < next; first += 1) {
      const long = (children[first].bytes / bytes) * short;
      if (width >= height) place(children[first], x, y + at, thick, long);
      else place(children[first], x + at, y, long, thick);
      at += long;
    }
    if (width >= height) { x += thick; width -= thick; } else { y += thick; height -= thick; }
    rest -= bytes;
  }
};
const isWanted = (node) => state.wanted === null || state.wanted.has(node);
const drawMap = () => {
  const width = map.clientWidth, height = map.clientHeight, ratio = devicePixelRatio || 1;
  map.width = width * ratio;
  map.height = height * ratio;
  const context = map.getContext("2d");
  context.scale(ratio, ratio);
  const text = variable("--text"), line = variable("--line"), back = variable("--panel");
  context.textBaseline = "middle";
  boxes = [];
  const label = (said, x, y, most) => {
    if (most < 24) return;
    const fits = Math.floor(most / 6.4);
    context.fillText(said.length > fits ? `${said.slice(0, Math.max(fits - 1, 1))}…` : said, x, y, most);
  };
  const draw = (node, x, y, wide, high) => {
    if (wide < LEAST || high < LEAST) {
      context.globalAlpha = 0.6;
      context.fillStyle = colourOf(node);
      context.fillRect(x, y, Math.max(wide, 0.5), Math.max(high, 0.5));
      return;
    }
    boxes.push([x, y, wide, high, node]);
    if (!node.children.length) {
      const share = state.device < 0 ? 1 : 0.08 + 0.92 * shareOf(node.tensor, state.device);
      context.globalAlpha = (isWanted(node) ? 1 : 0.15) * share;
      context.fillStyle = colours[node.tensor.dtype];
      const gap = wide > 4 && high > 4 ? 1 : 0;
      context.fillRect(x, y, wide - gap, high - gap);
      context.globalAlpha = isWanted(node) ? 1 : 0.3;
      if (high > 14) {
        context.fillStyle = dark.matches ? "#fff" : "#16181d";
        context.font = "11px system-ui, sans-serif";
        label(node.label, x + 4, y + 8, wide - 8);
        if (high > 30) { context.globalAlpha *= 0.7; label(size(node.bytes), x + 4, y + 21, wide - 8); }
      }
      return;
    }
    if (wide < 4 || high < 4) {
      context.globalAlpha = isWanted(node) ? 0.8 : 0.15;
      context.fillStyle = colourOf(node);
      context.fillRect(x, y, wide - 0.5, high - 0.5);
      return;
    }
    const titled = wide > 46 && high > 34 && node !== state.zoom, edge = node === state.zoom ? 0 : wide > 12 && high > 12 ? 2 : 0;
    context.globalAlpha = isWanted(node) ? 1 : 0.4;
    if (edge) {
      context.fillStyle = line;
      context.fillRect(x, y, wide - 1, high - 1);
      context.fillStyle = back;
    }
    if (titled) {
      context.fillStyle = text;
      context.font = "600 11px system-ui, sans-serif";
      label(node.label, x + 5, y + 9, wide - 10);
    }
    const top = titled ? 17 : edge;
    squarify(node.sized, x + edge, y + top, wide - 2 * edge, high - top - edge, draw);
  };
  if (state.zoom.bytes) draw(state.zoom, 0, 0, width, height);
  else {
    context.fillStyle = variable("--soft");
    context.font = "13px system-ui, sans-serif";
    context.fillText("There are no bytes to show.", 8, 20);
  }
  map.dataset.boxes = boxes.length;
  mark();
};
// What is chosen is marked above the map, which is not drawn again for it.
const mark = () => {
  const box = boxes.find(([, , , , node]) => node === state.chosen), chosen = byId("chosen");
  chosen.hidden = !box || state.chosen === state.zoom;
  if (chosen.hidden) return;
  ["left", "top", "width", "height"].forEach((side, at) => { chosen.style[side] = `${box[at]}px`; });
};
const at = (event) => {
  const x = event.offsetX, y = event.offsetY;
  for (let number = boxes.length - 1; number >= 0; number -= 1) {
    const [left, top, wide, high, node] = boxes[number];
    if (x >= left && x < left + wide && y >= top && y < top + high) return node;
  }
  return null;
};
const pathOf = (node) => {
  const path = [];
  for (let each = node; each && each !== root; each = each.parent) path.unshift(each.label);
  return path.join(".");
};
const nameOf = (node) => (node.tensor ? node.tensor.name : node === root ? "Everything" : pathOf(node));
const typeOf = (tensor) => `${data.dtypes[tensor.dtype]}[${tensor.shape.join(",")}]`;
map.addEventListener("mousemove", (event) => {
  const node = at(event);
  tip.hidden = !node || node === state.zoom;
  if (tip.hidden) return;
  const kind = node.tensor ? typeOf(node.tensor) : `${count(node.count)} tensors`;
  tip.textContent = `${nameOf(node)} · ${kind} · ${size(node.bytes)} (${share(node)})`;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
});
map.addEventListener("mouseleave", () => { tip.hidden = true; });
map.addEventListener("click", (event) => {
  let node = at(event);
  if (!node) return;
  while (node !== state.zoom && node.parent !== state.zoom) node = node.parent;
  if (node === state.zoom) return;
  if (node.children.length) zoomTo(node);
  reveal(node);
});
const share = (node) => (root.bytes ? `${((100 * node.bytes) / root.bytes).toFixed(1)} %` : "");
const zoomTo = (node) => {
  state.zoom = node;
  const crumbs = byId("crumbs");
  crumbs.replaceChildren();
  const path = [];
  for (let each = node; each; each = each.parent) path.unshift(each);
  for (const each of path) {
    const button = make("button", "", `${each.label} · ${size(each.bytes)}`);
    button.type = "button";
    button.addEventListener("click", () => zoomTo(each));
    crumbs.append(button);
  }
  drawMap();
};
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.zoom.parent) zoomTo(state.zoom.parent);
});

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const ROW = 24, HEAD = 26, LEAST = 1.5, MOST_DEVICES = 64, MOST_PARTS = 48;

const make = (tag, kind, text) => {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
};
const size = (bytes) => {
  const units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
  if (bytes < 1024) return `${bytes} B`;
  let power = 0;
  for (bytes /= 1024; bytes >= 1023.95 && power < 4; power += 1) bytes /= 1024;
  return `${bytes.toLocaleString("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 })} ${units[power]}`;
};
const digits = (value) => {
  if (value === null || typeof value === "string") return value || "";
  const rounded = +value.toPrecision(4), most = Math.abs(rounded);
  return most && (most < 1e-3 || most >= 1e7) ? rounded.toExponential() : String(rounded);
};
const count = (value) => value.toLocaleString("en");

// ---- the tree

const tensors = data.tensors.map(([name, dtype, shape, bytes, file, begin, notes, layout, statistics]) =>
  ({ name, dtype, shape, bytes, file, begin, notes, layout, statistics }));
const root = { label: "Everything", children: [], parent: null, depth: -1, bytes: 0, count: 0, open: true };
const nodes = [];
{
  const path = [root];
  for (const [depth, label, index] of data.rows) {
    const parent = path[depth];
    const tensor = index < 0 ? null : tensors[index];
    const node = { label, tensor, parent, depth, children: [], bytes: tensor ? tensor.bytes : 0, count: tensor ? 1 : 0, open: false };
    parent.children.push(node);
    nodes.push(node);
    path[depth + 1] = node;
  }
  for (const node of nodes.slice().reverse()) {
    node.parent.bytes += node.bytes;
    node.parent.count += node.count;
  }
  for (const node of [root, ...nodes]) {
    node.sized = node.children.filter((child) => child.bytes > 0).sort((a, b) => b.bytes - a.bytes);
  }
}
// As much is open at first as can be seen at once.
for (let depth = -1, shown = root.children.length; ;) {
  depth += 1;
  const level = nodes.filter((node) => node.depth === depth && node.children.length);
  shown += level.reduce((sum, node) => sum + node.children.length, 0);
  if (!level.length || shown > 60) break;
  for (const node of level) node.open = true;
}

const state = { zoom: root, chosen: null, device: -1, wanted: null, hovered: null };

// ---- colours

const FAMILIES = [
  [/^float64|^F64/, 232, 0], [/^float32|^F32/, 214, 0], [/^bfloat16|^BF16/, 186, 0], [/^float16|^F16/, 166, 0],
  [/^(float8|F8)/, 30, 0], [/^(float\d|F\d)/, 8, 0], [/^(int|I)/, 128, 0], [/^(uint|U)/, 88, 0],
  [/^bool|^BOOL/i, 318, 0], [/^complex|^C\d/, 268, 0],
];
const dtypeColours = () => {
  const seen = new Map();
  return data.dtypes.map((dtype) => {
    const family = FAMILIES.find(([pattern]) => pattern.test(dtype));
    if (!family) return `hsl(220 8% ${dark.matches ? 45 : 68}%)`;
    const nth = seen.get(family) || 0;
    seen.set(family, nth + 1);
    const light = dark.matches ? 42 + (nth % 4) * 7 : 72 - (nth % 4) * 7;
    return `hsl(${family[1]} ${dark.matches ? 42 : 58}% ${light}%)`;
  });
};
const deviceColour = (device) => `hsl(${(device * 137.5) % 360} ${dark.matches ? "45% 42%" : "60% 72%"})`;
let colours = dtypeColours();
const colourOf = (node) => {
  while (!node.tensor) node = node.sized[0];
  return colours[node.tensor.dtype];
};
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

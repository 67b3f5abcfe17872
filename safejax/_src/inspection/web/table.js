// ---- the table, of which only the rows that can be seen are in the page

const tree = byId("tree"), head = make("div", "head"), space = make("div");
const hasShards = data.devices.length > 1;
// Of each column its name, its least width in pixels, and its part of the width that is left.
const columns = [["name", 260, 3], ["dtype", 104, 0], ["shape", 120, 1], ["size", 84, 0], ["share", 90, 0]];
if (hasShards) columns.push(["shards", 64, 0]);
if (data.statistics) {
  columns.push(["histogram", 170, 0], ["min", 76, 0], ["max", 76, 0], ["mean", 76, 0], ["std", 76, 0], ["NaN", 50, 0], ["inf", 50, 0]);
}
columns.push(["", 90, 1]);
// All rows are of one width, so that their columns are below each other.
const GAP = 10;
const template = columns.map(([, least, part]) => (part ? `minmax(${least}px, ${part}fr)` : `${least}px`)).join(" ");
const leastWidth = `${columns.reduce((sum, [, least]) => sum + least + GAP, -GAP)}px`;
const RIGHT = new Set(["size", "min", "max", "mean", "std", "NaN", "inf"]);
head.setAttribute("role", "row");
for (const [column] of columns) {
  const cell = make("div", RIGHT.has(column) ? "number" : "", column);
  cell.setAttribute("role", "columnheader");
  head.append(cell);
}
head.style.gridTemplateColumns = template;
head.style.minWidth = space.style.minWidth = leastWidth;
space.style.position = "relative";
tree.append(head, space);
let visible = [];

const list = () => {
  visible = [];
  const stack = [...root.children].reverse();
  while (stack.length) {
    const node = stack.pop();
    if (!isWanted(node)) continue;
    visible.push(node);
    if (node.open || state.wanted !== null) for (let at = node.children.length - 1; at >= 0; at -= 1) stack.push(node.children[at]);
  }
  space.style.height = `${visible.length * ROW}px`;
  render();
};
const turn = (node) => { node.open = !node.open; list(); };
const rowOf = (node, number) => {
  const row = make("div", `row${node.children.length ? " container" : ""}`), tensor = node.tensor;
  row.style.gridTemplateColumns = template;
  row.style.top = `${number * ROW}px`;
  row.setAttribute("role", "row");
  row.setAttribute("aria-level", node.depth + 1);
  row.setAttribute("aria-selected", node === state.chosen);
  const isOpen = node.open || state.wanted !== null;
  const name = make("div", "name");
  name.style.paddingLeft = `${Math.min(node.depth, 24) * 16}px`;
  name.title = nameOf(node);
  const mark = make("span", "turn", node.children.length ? (isOpen ? "▾" : "▸") : "");
  if (node.children.length) {
    row.setAttribute("aria-expanded", isOpen);
    mark.addEventListener("click", (event) => { event.stopPropagation(); turn(node); });
  }
  name.append(mark, node.label);
  const dtype = make("div"), bar = make("div"), filled = make("div", "share");
  if (tensor) {
    const chip = make("span", "chip");
    chip.style.background = colours[tensor.dtype];
    dtype.append(chip, data.dtypes[tensor.dtype]);
  }
  filled.style.width = `${root.bytes ? (100 * node.bytes) / root.bytes : 0}%`;
  filled.style.background = node.bytes ? colourOf(node) : "transparent";
  bar.append(filled);
  const cells = [name, dtype, make("div", "", tensor ? `[${tensor.shape.join(", ")}]` : `${count(node.count)} tensors`), make("div", "number", size(node.bytes)), bar];
  if (hasShards) {
    const cell = make("div");
    if (tensor && tensor.layout >= 0 && isRegular(layouts[tensor.layout])) {
      const canvas = make("canvas");
      drawGrid(canvas, layouts[tensor.layout], 56, 16, false);
      cell.append(canvas);
    }
    cells.push(cell);
  }
  if (data.statistics) {
    const found = tensor && tensor.statistics;
    cells.push(make("div", "spark", found ? found[7] : ""));
    for (let at = 0; at < 4; at += 1) cells.push(make("div", "number", found ? digits(found[at]) : ""));
    for (let at = 4; at < 6; at += 1) cells.push(make("div", "number", found ? count(found[at]) : ""));
  }
  cells.push(make("div", "", tensor ? tensor.notes : ""));
  for (const cell of cells) cell.setAttribute("role", "gridcell");
  row.append(...cells);
  row.addEventListener("click", () => choose(node));
  row.addEventListener("dblclick", () => (node.children.length ? turn(node) : undefined));
  return row;
};
const render = () => {
  const first = Math.max(0, Math.floor((tree.scrollTop - HEAD) / ROW) - 6);
  const last = Math.min(visible.length, Math.ceil((tree.scrollTop + tree.clientHeight) / ROW) + 6);
  const rows = [];
  for (let number = first; number < last; number += 1) rows.push(rowOf(visible[number], number));
  space.replaceChildren(...rows);
  tree.setAttribute("aria-rowcount", visible.length);
};
const scrollTo = (number) => {
  const top = number * ROW, room = tree.clientHeight - HEAD - ROW;
  if (top < tree.scrollTop) tree.scrollTop = top;
  else if (top > tree.scrollTop + room) tree.scrollTop = top - room;
};
const reveal = (node) => {
  for (let each = node.parent; each; each = each.parent) each.open = true;
  list();
  choose(node);
  scrollTo(visible.indexOf(node));
};
tree.addEventListener("scroll", () => requestAnimationFrame(render));
tree.addEventListener("keydown", (event) => {
  const now = visible.indexOf(state.chosen), node = state.chosen;
  const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20, Home: -Infinity, End: Infinity };
  if (event.key in moves && visible.length) {
    const next = Math.min(Math.max(now + moves[event.key], 0), visible.length - 1);
    choose(visible[next]);
    scrollTo(next);
  } else if (node && event.key === "ArrowRight" && node.children.length && !node.open) turn(node);
  else if (node && event.key === "ArrowLeft") {
    if (node.children.length && node.open) turn(node);
    else if (node.parent && node.parent !== root) reveal(node.parent);
  } else if (node && event.key === "Enter" && node.children.length) turn(node);
  else return;
  event.preventDefault();
});

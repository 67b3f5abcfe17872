// ---- shards

const volume = (sides) => sides.reduce((product, side) => product * side, 1);
const layouts = data.layouts.map(([text, shape, parts]) => {
  const whole = volume(shape) || 1;
  const held = new Map();
  for (const [begin, end, devices] of parts) {
    const share = volume(end.map((at, axis) => at - begin[axis])) / whole;
    for (const device of devices) held.set(device, (held.get(device) || 0) + share);
  }
  return { text, shape, parts, held };
});
const shareOf = (tensor, device) => (tensor.layout < 0 ? 0 : layouts[tensor.layout].held.get(device) || 0);
const isRegular = (layout) => layout.parts.length > 0;

// The axes that are cut, as rows and columns, and the place of each part among them.
const gridOf = (layout) => {
  const axes = layout.shape.map((_, axis) => [...new Set(layout.parts.map(([begin]) => begin[axis]))].sort((a, b) => a - b));
  const cut = axes.map((_, axis) => axis).filter((axis) => axes[axis].length > 1);
  let columns = cut.slice(1), rows = cut.slice(0, 1);
  if (cut.length === 1 && cut[0] === layout.shape.length - 1) [columns, rows] = [cut, []];
  const place = (begin, chosen) => chosen.reduce((at, axis) => at * axes[axis].length + axes[axis].indexOf(begin[axis]), 0);
  const extent = (chosen) => volume(chosen.map((axis) => axes[axis].length));
  const said = (chosen, word) => chosen.map((axis) => `${word}: axis ${axis} in ${axes[axis].length}`).join(", ");
  return {
    rows: extent(rows), columns: extent(columns), said: [said(rows, "down"), said(columns, "across")].filter(Boolean).join("; "),
    cells: layout.parts.map(([begin, , devices]) => [place(begin, rows), place(begin, columns), devices]),
  };
};
const shortly = (devices) => {
  const names = devices.map((device) => data.devices[device].replace(/^.*:/, ""));
  return names.length > 4 ? `${names.slice(0, 3).join(",")}…` : names.join(",");
};
const drawGrid = (canvas, layout, width, height, withText) => {
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const grid = layout.grid || (layout.grid = gridOf(layout));
  const wide = width / grid.columns, high = height / grid.rows, gap = wide > 5 && high > 5 ? 1 : 0;
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const [row, column, devices] of grid.cells) {
    const has = state.device >= 0 && devices.includes(state.device);
    context.globalAlpha = state.device < 0 || has ? 1 : 0.18;
    // What all devices hold is of no one's colour.
    const isEverywhere = grid.cells.length === 1 && devices.length > 1 && !has;
    context.fillStyle = isEverywhere ? variable("--line") : deviceColour(has ? state.device : devices[0]);
    context.fillRect(column * wide, row * high, wide - gap, high - gap);
    if (!withText || high < 13) continue;
    const text = shortly(devices);
    if (context.measureText(text).width > wide - 4) continue;
    context.fillStyle = dark.matches ? "#fff" : "#16181d";
    context.fillText(text, (column + 0.5) * wide, (row + 0.5) * high);
  }
};

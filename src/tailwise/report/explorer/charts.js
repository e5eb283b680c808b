// Drawings, as SVG at the size of the place they stand in.

const SVG = "http://www.w3.org/2000/svg";

function drawn(name, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  return element;
}

// An empty drawing in a place, and the scales of its plane: x and y map data to pixels.
function plane(place, { height, left = 40, right = 12, top = 12, bottom = 34, xs, ys }) {
  const width = Math.max(280, Math.floor(place.clientWidth));
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  place.replaceChildren(svg);
  const scale = ([low, high], from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);
  return {
    svg,
    width,
    height,
    edges: { left, right: width - right, top, bottom: height - bottom },
    x: scale(xs, left, width - right),
    y: scale(ys, height - bottom, top),
    add(name, attributes, text) {
      return svg.appendChild(drawn(name, attributes, text));
    },
  };
}

function nearTen([low, high]) {
  const steps = [Math.max(0, Math.floor(low / 10) * 10), Math.min(100, Math.ceil(high / 10) * 10)];
  return steps[0] === steps[1] ? [Math.max(0, steps[0] - 10), steps[1] || 10] : steps;
}

function percentAxis(on, [low, high]) {
  const step = high - low > 50 ? 20 : high - low > 20 ? 10 : 5;
  for (let value = low; value <= high; value += step) {
    on.add("line", { class: "grid", x1: on.edges.left, x2: on.edges.right, y1: on.y(value), y2: on.y(value) });
    on.add("text", { class: "tick", x: on.edges.left - 6, y: on.y(value) + 4, "text-anchor": "end" }, `${value}`);
  }
}

function linePath(points) {
  let path = "";
  let pen = "M";
  for (const [x, y] of points) {
    if (y === null) {
      pen = "M";
    } else {
      path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
      pen = "L";
    }
  }
  return path;
}

function dotsPath(points) {
  return points.map(([x, y]) => (y === null ? "" : `M${x.toFixed(1)} ${y.toFixed(1)}h0`)).join("");
}

// Accuracy by group against the strength. Returns what moves the marker, and the strength at a place on the screen.
function drawCurves(place, run) {
  const names = [...GROUPS, "all"].filter((name) => run.figures[name].some((cell) => cell));
  const means = names.map((name) => run.figures[name].map((cell) => (cell ? cell.mean : null)));
  const known = means.flat().filter((value) => value !== null);
  const ys = nearTen([Math.min(...known), Math.max(...known)]);
  const highest = run.values.at(-1);
  const on = plane(place, { height: 290, right: 62, xs: [0, highest], ys });
  on.svg.setAttribute("aria-label", `Accuracy by group against ${run.label}, from 0 to ${highest}`);
  percentAxis(on, ys);
  const step = highest / (on.width < 400 ? 2 : 5);
  for (let value = 0; value <= highest * 1.001; value += step) {
    const x = on.x(value);
    on.add("text", { class: "tick", x, y: on.edges.bottom + 16, "text-anchor": "middle" }, `${+value.toFixed(2)}`);
  }
  const middle = (on.edges.left + on.edges.right) / 2;
  on.add("text", { class: "axis", x: middle, y: on.height - 3, "text-anchor": "middle" }, run.label);
  for (const value of new Set(run.chosen ? run.chosen.values : [])) {
    if (value > highest) continue;
    const [x, y] = [on.x(value), on.edges.bottom];
    const mark = on.add("path", { class: "chosen", d: `M${x} ${y}l-4 7h8z` });
    mark.append(drawn("title", {}, `${run.chosen.text}: ${value}`));
  }
  const ends = [];
  names.forEach((name, i) => {
    const points = run.values.map((value, k) => [on.x(value), means[i][k] === null ? null : on.y(means[i][k])]);
    on.add("path", { class: `line ${name}`, d: linePath(points) });
    ends.push({ name, y: points.at(-1)[1] });
  });
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => (end.y = Math.max(end.y, i ? ends[i - 1].y + 14 : on.edges.top)));
  const over = Math.max(0, ends.at(-1).y - on.edges.bottom);
  for (const end of ends) on.add("text", { class: `name ${end.name}`, x: on.edges.right + 8, y: end.y - over + 4 }, end.name);
  const rule = on.add("line", { class: "now", y1: on.edges.top, y2: on.edges.bottom });
  const dots = names.map((name) => on.add("circle", { class: `dot ${name}`, r: 4 }));
  return {
    move(now) {
      const x = on.x(now.value);
      rule.setAttribute("x1", x);
      rule.setAttribute("x2", x);
      names.forEach((name, i) => {
        const cell = now.figures[name];
        dots[i].setAttribute("visibility", cell ? "visible" : "hidden");
        if (!cell) return;
        dots[i].setAttribute("cx", x);
        dots[i].setAttribute("cy", on.y(cell.mean));
      });
    },
    valueAt(clientX) {
      const box = on.svg.getBoundingClientRect();
      const x = ((clientX - box.left) / box.width) * on.width;
      return ((x - on.edges.left) / (on.edges.right - on.edges.left)) * highest;
    },
  };
}

// Accuracy of each class, from head to tail, over its training images; what it was at strength 0 beside it.
function drawClasses(place, run, before, now) {
  const order = run.order;
  const many = order.length > 60;
  const named = order.length <= 20 && place.clientWidth >= 46 * order.length;
  const on = plane(place, { height: 270, left: 40, right: 48, bottom: 40, xs: [-0.5, order.length - 0.5], ys: [0, 100] });
  on.svg.setAttribute("aria-label", `Accuracy of each class at ${run.label} ${now.value}, from head to tail`);
  drawCounts(on, run);
  percentAxis(on, [0, 100]);
  let begin = 0;
  GROUPS.forEach((name, group) => {
    const size = run.groupOf.filter((g) => g === group).length;
    if (!size) return;
    const x = on.x(begin - 0.5);
    if (begin) on.add("line", { class: "between", x1: x, x2: x, y1: on.edges.top, y2: on.edges.bottom });
    const wide = on.x(begin + size - 0.5) - x;
    if (wide > 34) {
      const y = on.height - 4;
      on.add("text", { class: `name ${name}`, x: x + wide / 2, y, "text-anchor": "middle" }, name);
    }
    begin += size;
  });
  if (named) {
    order.forEach((c, rank) => {
      const letters = Math.max(3, Math.floor((on.x(1) - on.x(0)) / 7));
      const text = run.names[c].length > letters ? `${[...run.names[c]].slice(0, letters - 1).join("")}…` : run.names[c];
      const at = { class: "tick", x: on.x(rank), y: on.edges.bottom + 15, "text-anchor": "middle" };
      on.add("text", at, text).append(drawn("title", {}, run.names[c]));
    });
  }
  const points = (cells) => order.map((c, rank) => [on.x(rank), cells[c] ? on.y(cells[c].mean) : null]);
  const [old, current] = [points(before.classes), points(now.classes)];
  if (many) {
    on.add("path", { class: "dots small", d: dotsPath(current) });
    for (const [cells, kind] of [[before, "before"], [now, "current"]]) {
      const means = runningMean(order.map((c) => (cells.classes[c] ? cells.classes[c].mean : null)));
      const line = means.map((value, rank) => [on.x(rank), value === null ? null : on.y(value)]);
      on.add("path", { class: `line ${kind}`, d: linePath(line) });
    }
    return;
  }
  const stems = order.map((_, i) => (old[i][1] === null ? "" : `M${old[i].join(" ")}L${current[i].join(" ")}`));
  on.add("path", { class: "stems", d: stems.join("") });
  on.add("path", { class: "dots before", d: dotsPath(old) });
  on.add("path", { class: "dots inside", d: dotsPath(old) });
  on.add("path", { class: "dots current", d: dotsPath(current) });
}

function drawCounts(on, run) {
  const counts = run.order.map((c) => run.counts[c]);
  const top = Math.log10(Math.max(10, ...counts));
  const y = (count) => on.edges.bottom - (Math.log10(Math.max(1, count)) / top) * (on.edges.bottom - on.edges.top);
  let area = `M${on.x(-0.5)} ${on.edges.bottom}`;
  counts.forEach((count, rank) => {
    const high = y(count).toFixed(1);
    area += `L${on.x(rank - 0.5).toFixed(1)} ${high}L${on.x(rank + 0.5).toFixed(1)} ${high}`;
  });
  on.add("path", { class: "counts", d: `${area}L${on.x(counts.length - 0.5)} ${on.edges.bottom}Z` });
  for (let power = 0; power <= top; power++) {
    on.add("text", { class: "tick", x: on.edges.right + 6, y: y(10 ** power) + 4 }, `${10 ** power}`);
  }
}

// Where the images of each group go: right, or wrong and taken for a class of each group; thin: at strength 0.
function drawConfusion(place, run, before, now) {
  const on = plane(place, { height: 204, left: 68, right: 8, bottom: 30, xs: [0, 100], ys: [0, 1] });
  on.svg.setAttribute("aria-label", "Percent of each group's images that are right, or taken for each group");
  const tile = { id: "wrong", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" };
  on.add("pattern", tile).append(drawn("rect", { class: "hatch", width: 2.2, height: 6 }));
  const rows = GROUPS.map((_, group) => group).filter((group) => now.confusion[group][0] !== null);
  const room = (on.edges.bottom - 8) / rows.length;
  rows.forEach((group, i) => {
    const y = 8 + i * room;
    on.add("text", { class: `name ${GROUPS[group]}`, x: on.edges.left - 8, y: y + 17, "text-anchor": "end" }, GROUPS[group]);
    bar(on, now.confusion[group], group, y, 26, true);
    bar(on, before.confusion[group], group, y + 30, 8, false);
  });
  for (const value of [0, 25, 50, 75, 100]) {
    on.add("text", { class: "tick", x: on.x(value), y: on.edges.bottom + 14, "text-anchor": value < 100 ? "middle" : "end" }, `${value}`);
  }
}

function bar(on, shares, group, y, height, labelled) {
  let from = 0;
  shares.forEach((share, column) => {
    const name = GROUPS[column ? column - 1 : group];
    const [x, width] = [on.x(from), on.x(share) - on.x(0)];
    from += share;
    if (!share) return;
    const what = column ? `wrong, taken for ${name}` : "right";
    const part = on.add("rect", { class: `share ${name}`, x, y, width: Math.max(0, width - 1), height });
    part.append(drawn("title", {}, `${what}: ${printed(share)} %`));
    if (column) on.add("rect", { class: "wrong", x, y, width: Math.max(0, width - 1), height, fill: "url(#wrong)" });
    if (labelled && width > 40) {
      if (column) on.add("rect", { class: "plate", x: x + 3, y: y + 4, width: 34, height: 18, rx: 2 });
      on.add("text", { class: column ? "on-plate" : "inside", x: x + 7, y: y + 17 }, printed(share));
    }
  });
}

// A sample's path: from strength 0 to the highest, filled where it is right.
function drawPath(path, label, value, highest) {
  const svg = drawn("svg", { class: "path", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  path.forEach((piece, i) => {
    const end = i + 1 < path.length ? path[i + 1].start : highest;
    const [x, width] = [(100 * piece.start) / highest, (100 * (end - piece.start)) / highest];
    svg.append(drawn("rect", { class: piece.class === label ? "right" : "other", x, y: 2, width: Math.max(0, width), height: 6 }));
    if (i) svg.append(drawn("rect", { class: "cut", x: x - 0.4, y: 2, width: 0.8, height: 6 }));
  });
  svg.append(drawn("rect", { class: "here", x: (100 * value) / highest - 0.7, y: 0, width: 1.4, height: 10 }));
  return svg;
}

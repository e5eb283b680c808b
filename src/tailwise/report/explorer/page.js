// The page: one state (run, strength, order of the table), and what shows it. All text goes in as text, never as HTML.

const PAGE_ROWS = 25;
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const state = { run: null, now: null, before: null, curves: null, sort: { key: "rank", down: false }, page: 0, filter: "" };

function element(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}

function className(run, c) {
  return element("span", { class: "class-name", dir: "auto", title: run.names[c] }, run.names[c]);
}

function prepare(run) {
  if (run.samples) return run;
  run.samples = run.seeds.map(openSeed);
  run.names = run.names.map((name, c) => (name.trim() ? name : `class ${c}`));
  run.order = [...run.names.keys()].sort((a, b) => run.published[b] - run.published[a] || a - b);
  run.rank = new Array(run.names.length);
  run.order.forEach((c, rank) => (run.rank[c] = rank));
  run.testImages = run.names.map((_, c) => mean(run.samples.map(({ labels }) => labels.filter((l) => l === c).length)));
  run.before = situation(run, 0);
  return run;
}

function openRun(number) {
  const run = (state.run = prepare(data.runs[number]));
  state.before = run.before;
  state.page = 0;
  at("about").textContent = run.about;
  at("meaning").textContent = run.meaning;
  at("symbol").textContent = run.label;
  at("slider").max = run.values.length - 1;
  at("exact").step = run.values[1];
  at("exact").max = run.values.at(-1);
  at("chosen-line").hidden = !run.chosen;
  if (run.chosen) at("chosen").textContent = run.chosen.text;
  for (const panel of document.querySelectorAll("[data-run]")) panel.hidden = panel.dataset.run !== String(number);
  drawAll();
  show(run.start);
}

function drawAll() {
  state.curves = drawCurves(at("curves"), state.run);
}

function show(value) {
  const run = state.run;
  state.now = situation(run, value);
  const place = run.values.indexOf(value);
  const near = run.values.reduce((best, v, i) => (Math.abs(v - value) < Math.abs(run.values[best] - value) ? i : best), 0);
  at("slider").value = place < 0 ? near : place;
  at("exact").value = value;
  showFigures();
  const few = figure(state.now.figures.few);
  at("slider").setAttribute("aria-valuetext", `${run.label} ${value}: all ${figure(state.now.figures.all)}, few ${few}`);
  state.curves.move(state.now);
  drawClasses(at("classes"), run, state.before, state.now);
  drawConfusion(at("confusion"), run, state.before, state.now);
  showConfusion();
  showTable();
  showChanged();
}

function showFigures() {
  for (const name of [...GROUPS, "all"]) {
    const tile = at(`figure-${name}`);
    const [cell, old] = [state.now.figures[name], state.before.figures[name]];
    tile.querySelector(".value").textContent = figure(cell);
    const change = cell ? cell.mean - old.mean : 0;
    const against = cell && state.now.value ? [printed(change, true), element("small", {}, " against 0")] : [];
    tile.querySelector(".change").replaceChildren(...against);
  }
}

function showConfusion() {
  const rows = GROUPS.flatMap((name, group) => {
    const shares = state.now.confusion[group];
    if (shares[0] === null) return [];
    const cells = shares.map((share, column) => {
      const change = share - state.before.confusion[group][column];
      const cell = element("td", {}, printed(share));
      if (state.now.value) cell.append(element("small", {}, printed(change, true)));
      return cell;
    });
    return [element("tr", {}, element("th", { scope: "row" }, name), ...cells)];
  });
  at("confusion-rows").replaceChildren(...rows);
}

// ---- the table of classes

const COLUMNS = {
  rank: (c) => state.run.rank[c],
  name: (c) => state.run.names[c],
  counts: (c) => state.run.counts[c],
  test: (c) => state.run.testImages[c],
  before: (c) => state.before.classes[c]?.mean ?? null,
  now: (c) => state.now.classes[c]?.mean ?? null,
  change: (c) => (state.now.classes[c] ? state.now.classes[c].mean - state.before.classes[c].mean : null),
  taken: (c) => state.now.takenFor[c]?.times ?? 0,
};

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "string" ? a.localeCompare(b) : a - b;
}

function rowsInOrder() {
  const { key, down } = state.sort;
  const wanted = state.filter.toLowerCase();
  const classes = state.run.order.filter((c) => state.run.names[c].toLowerCase().includes(wanted));
  const keys = new Map(classes.map((c) => [c, COLUMNS[key](c)]));
  const unknown = (c) => keys.get(c) === null;
  return classes.sort((a, b) => {
    const order = compare(keys.get(a), keys.get(b));
    return (down && !unknown(a) && !unknown(b) ? -order : order) || state.run.rank[a] - state.run.rank[b];
  });
}

function showTable() {
  const { run, now, before } = state;
  const classes = rowsInOrder();
  const pages = Math.max(1, Math.ceil(classes.length / PAGE_ROWS));
  state.page = Math.min(state.page, pages - 1);
  const first = state.page * PAGE_ROWS;
  const rows = classes.slice(first, first + PAGE_ROWS).map((c) => {
    const taken = now.takenFor[c];
    const change = COLUMNS.change(c);
    const number = (text, kind = "") => element("td", { class: `number ${kind}` }, text);
    return element(
      "tr",
      {},
      number(`${run.rank[c] + 1}`),
      element("th", { scope: "row" }, className(run, c)),
      element("td", {}, GROUPS[run.groupOf[c]]),
      number(run.counts[c].toLocaleString("en")),
      number(`${+run.testImages[c].toFixed(1)}`),
      number(figure(before.classes[c])),
      number(figure(now.classes[c]), "now-value"),
      number(change === null ? "-" : printed(change, true), change > 0 ? "up" : change < 0 ? "down" : ""),
      element("td", {}, ...(taken ? [className(run, taken.class), ` (${+taken.times.toFixed(1)})`] : ["-"])),
    );
  });
  at("class-rows").replaceChildren(...rows);
  for (const header of document.querySelectorAll("#class-table th[data-key]")) {
    const active = header.dataset.key === state.sort.key;
    if (active) header.setAttribute("aria-sort", state.sort.down ? "descending" : "ascending");
    else header.removeAttribute("aria-sort");
  }
  const shown = classes.length ? `${first + 1} to ${first + rows.length} of ${classes.length}` : "none";
  at("page-of").textContent = `${shown} classes`;
  at("pager").hidden = run.names.length <= PAGE_ROWS;
  at("previous").disabled = state.page === 0;
  at("next").disabled = state.page === pages - 1;
}

// ---- the most changed predictions

function showChanged() {
  const { run, now } = state;
  const changed = run.changed;
  at("changed").hidden = !changed;
  if (!changed) return;
  at("changed-about").textContent = changed.about;
  const lists = changed.kinds.map((kind) => {
    const cards = kind.samples.map((sample) => card(run, run.samples[0], sample, now.value));
    const heading = element("h3", {}, kind.title, element("small", {}, `${kind.total} of ${changed.total}`));
    return element("div", {}, heading, cards.length ? element("div", { class: "cards" }, ...cards) : "none");
  });
  at("changed-lists").replaceChildren(...lists);
}

function card(run, samples, sample, value) {
  const label = samples.labels[sample.row];
  const predicted = predictionOf(samples, sample.row, value);
  const truth = element("p", { class: "truth" }, className(run, label));
  const says = element("p", { class: predicted === label ? "says right" : "says" });
  says.append(element("span", { class: "mark" }, predicted === label ? "✓ " : "✗ "), className(run, predicted));
  const made = element("figure", { class: "card" });
  if (sample.picture) made.append(element("img", { src: sample.picture, alt: "" }));
  const path = drawPath(pathOf(samples, sample.row), label, value, run.values.at(-1));
  made.append(element("figcaption", { title: sample.id }, truth, says, path));
  return made;
}

// ---- what the reader does

function begin() {
  const choice = at("run");
  data.runs.forEach((run, number) => choice.append(element("option", { value: number }, run.title)));
  at("run-choice").hidden = data.runs.length < 2;
  choice.addEventListener("change", () => openRun(Number(choice.value)));
  at("slider").addEventListener("input", () => show(state.run.values[Number(at("slider").value)]));
  at("exact").addEventListener("change", () => {
    const value = Number.parseFloat(at("exact").value);
    show(Number.isFinite(value) ? Math.min(Math.max(value, 0), state.run.values.at(-1)) : state.now.value);
  });
  const nearest = (value) => {
    const last = state.run.values.length - 1;
    show(state.run.values[Math.min(last, Math.max(0, Math.round((value / state.run.values[last]) * last)))]);
  };
  at("curves").addEventListener("pointerdown", (event) => {
    at("curves").setPointerCapture(event.pointerId);
    nearest(state.curves.valueAt(event.clientX));
  });
  at("curves").addEventListener("pointermove", (event) => {
    if (event.buttons) nearest(state.curves.valueAt(event.clientX));
  });
  for (const header of document.querySelectorAll("#class-table th[data-key]")) {
    header.querySelector("button").addEventListener("click", () => {
      const key = header.dataset.key;
      const again = state.sort.key === key;
      state.sort = { key, down: again ? !state.sort.down : !["rank", "name"].includes(key) };
      state.page = 0;
      showTable();
    });
  }
  at("filter").addEventListener("input", () => {
    state.filter = at("filter").value;
    state.page = 0;
    showTable();
  });
  at("previous").addEventListener("click", () => (state.page--, showTable()));
  at("next").addEventListener("click", () => (state.page++, showTable()));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return; // a phone's bar that comes and goes
    width = window.innerWidth;
    drawAll();
    show(state.now.value);
  });
  const opened = [];
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) opened.push(details), (details.open = true);
  });
  window.addEventListener("afterprint", () => {
    for (const details of opened.splice(0)) details.open = false;
  });
  document.documentElement.classList.add("live");
  openRun(0);
}

begin();

// What the page computes: predictions from paths, and percents from predictions. No document in here.

const GROUPS = ["many", "medium", "few"];

function decoded(base64, Type) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Type(bytes.buffer);
}

// A seed's samples. Sample n's path is classes[first[n]] .. classes[first[n + 1] - 1], each from its start on.
function openSeed(seed) {
  const pieces = decoded(seed.pieces, Uint16Array);
  const first = new Uint32Array(pieces.length + 1);
  for (let n = 0; n < pieces.length; n++) first[n + 1] = first[n] + pieces[n];
  return {
    labels: decoded(seed.labels, Uint16Array),
    classes: decoded(seed.classes, Uint16Array),
    starts: decoded(seed.starts, Float64Array),
    first,
  };
}

function predictionOf(samples, n, value) {
  let piece = samples.first[n + 1] - 1;
  while (samples.starts[piece] > value) piece--;
  return samples.classes[piece];
}

function pathOf(samples, n) {
  const path = [];
  for (let piece = samples.first[n]; piece < samples.first[n + 1]; piece++) {
    path.push({ start: samples.starts[piece], class: samples.classes[piece] });
  }
  return path;
}

// Of one seed at one strength: samples, hits and wrong predictions of each class, and how many went to each group.
function tally(samples, value, groupOf) {
  const size = groupOf.length;
  const seen = new Uint32Array(size);
  const right = new Uint32Array(size);
  const taken = GROUPS.map(() => new Uint32Array(size)); // wrong ones, by the group they are taken for
  const wrong = new Map(); // label * C + prediction -> times
  for (let n = 0; n < samples.labels.length; n++) {
    const label = samples.labels[n];
    const predicted = predictionOf(samples, n, value);
    seen[label]++;
    if (predicted === label) {
      right[label]++;
    } else {
      taken[groupOf[predicted]][label]++;
      const key = label * size + predicted;
      wrong.set(key, (wrong.get(key) ?? 0) + 1);
    }
  }
  return { seen, right, taken, wrong };
}

function mean(values) {
  const known = values.filter((value) => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

function meanAndStd(values) {
  const known = values.filter((value) => value !== null);
  const middle = mean(known);
  if (middle === null) return null;
  const squares = known.reduce((sum, value) => sum + (value - middle) ** 2, 0);
  return { mean: middle, std: known.length > 1 ? Math.sqrt(squares / (known.length - 1)) : null };
}

function perClass(counts) {
  return Array.from(counts.seen, (seen, c) => (seen ? (100 * counts.right[c]) / seen : null));
}

// Percent of each group's samples that are right, or taken for a class of each group: means over its classes.
function confusion(counts, groupOf) {
  return GROUPS.map((_, group) => {
    const classes = [...groupOf.keys()].filter((c) => groupOf[c] === group && counts.seen[c]);
    const share = (times) => mean(classes.map((c) => (100 * times[c]) / counts.seen[c]));
    return [share(counts.right), ...counts.taken.map(share)];
  });
}

function groupFigures(seeds, groupOf) {
  const figures = {};
  GROUPS.forEach((name, group) => {
    figures[name] = meanAndStd(seeds.map((counts) => mean(perClass(counts).filter((_, c) => groupOf[c] === group))));
  });
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  figures.all = meanAndStd(seeds.map((counts) => (100 * sum(counts.right)) / sum(counts.seen)));
  return figures;
}

// Everything the page shows of a run at one strength. Figures of the slider's values come from Python, so that no
// digit differs from what the command prints; those in between are computed here.
function situation(run, value) {
  const seeds = run.samples.map((samples) => tally(samples, value, run.groupOf));
  const place = run.values.indexOf(value);
  const figures = place < 0 ? groupFigures(seeds, run.groupOf) : {};
  if (place >= 0) for (const name of [...GROUPS, "all"]) figures[name] = run.figures[name][place];
  const accuracies = seeds.map(perClass);
  const confusions = seeds.map((counts) => confusion(counts, run.groupOf));
  return {
    value,
    figures,
    classes: run.names.map((_, c) => meanAndStd(accuracies.map((accuracy) => accuracy[c]))),
    confusion: GROUPS.map((_, group) =>
      [0, 1, 2, 3].map((column) => mean(confusions.map((matrix) => matrix[group][column]))),
    ),
    takenFor: takenFor(seeds, run.names.length),
  };
}

// For each class the wrong class that it is predicted as most often over all seeds, and how often a seed does so.
function takenFor(seeds, size) {
  const total = new Map();
  for (const { wrong } of seeds) for (const [key, times] of wrong) total.set(key, (total.get(key) ?? 0) + times);
  const most = new Array(size).fill(null);
  for (const [key, times] of total) {
    const [label, predicted] = [Math.floor(key / size), key % size];
    const before = most[label];
    if (!before || times > before.times || (times === before.times && predicted < before.class)) {
      most[label] = { class: predicted, times };
    }
  }
  return most.map((found) => found && { class: found.class, times: found.times / seeds.length });
}

// One decimal, as Python prints it: an exact tie goes to the even digit. (Only x.25 and x.75 are exact ties.)
function printed(number, sign = false) {
  const size = Math.abs(number);
  const even = size % 1 === 0.25 ? (size - 0.05).toFixed(1) : size.toFixed(1);
  return (number < 0 ? "-" : sign ? "+" : "") + even;
}

function figure(cell) {
  if (!cell) return "-";
  return printed(cell.mean) + (cell.std === null ? "" : ` ± ${printed(cell.std)}`);
}

// The running mean over a twentieth of the classes, as in the figures of `tailwise plot`.
function runningMean(values) {
  const half = Math.max(1, Math.floor(values.length / 40));
  return values.map((_, i) => mean(values.slice(Math.max(0, i - half), i + half + 1)));
}

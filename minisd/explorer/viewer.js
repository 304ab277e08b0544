"use strict";

// What the explorer and the studio share: a run's frames, views, sliders, curve and ledger.
// The page shows what is in `state` and nothing else: change `state`, then call show().
const $ = (id) => document.getElementById(id);
const state = { run: 0, frame: 0, view: "image", word: 0, playing: null, comparing: false };
// One init image and its runs, which differ in strength only. Each run r has r.of = its data.
let data = null;
let beside = null; // a run, perhaps of other data, that is shown beside the current one
let onRun = () => {}; // the studio's: another strength was chosen

// ---- frames -----------------------------------------------------------------------------------
// A run of n steps has n + 2 frames: the init image, the steps, the result. The Step slider has a
// column for every step of the schedule, skipped steps included: 0 is the init image, 1 to N are
// the steps, N + 1 is the result.

const run = () => data.runs[state.run];
const asked = (r) => r.of.sigmas.length - 1; // N, the steps of the whole schedule
const last = (r) => r.steps_run + 1;
const reached = (r) => r.reached ?? last(r); // the last frame that is here already
const skipped = (r) => asked(r) - r.steps_run;
const column = (r, frame) => (frame === 0 ? 0 : skipped(r) + frame);
const frameAt = (r, col) => (col === 0 ? 0 : col - skipped(r)); // 0 or less for a skipped step
const isStep = (r, frame) => frame > 0 && frame < last(r);
const sigmaAt = (r, frame) => r.of.sigmas[skipped(r) + frame - 1];

// ---- pictures ---------------------------------------------------------------------------------

const VIEWS = [
  { id: "x", label: "latent", before: "" },
  { id: "x0", label: "clean latent", before: "=" },
  { id: "eps", label: "noise", before: "+" },
  { id: "image", label: "picture", before: " " },
  { id: "words", label: "words", before: " " },
];
// r.images has a sheet for each view: a row of tiles, as an Image or a canvas.
const tileSize = (view, r) => (view === "image" || view === "words" ? r.of.imageTile : r.of.latent);
// Whether the tile is here. While a run is drawn, r.arrived has the frames of each view.
const isHere = (r, view, frame) => Boolean(r.images[view] && (r.arrived?.[view].has(frame) ?? true));

function load(uri) {
  const image = new Image();
  image.src = uri;
  return image.decode().then(() => image);
}

// Paint a view of a frame. Returns false if the frame has no such view.
function paint(canvas, view, r, frame) {
  const stepsOnly = view === "eps" || view === "words"; // no tile for init image and result
  const smooth = view === "words";
  const [w, h] = tileSize(view, r);
  const scale = smooth ? Math.max(1, Math.round(256 / w)) : 1;
  canvas.width = w * scale;
  canvas.height = h * scale;
  canvas.classList.toggle("smooth", smooth);
  if ((stepsOnly && !isStep(r, frame)) || !isHere(r, view === "image" ? "x0" : view, frame)) {
    return false;
  }
  const context = canvas.getContext("2d");
  const [W, H] = [canvas.width, canvas.height];
  context.imageSmoothingEnabled = false;
  // Until the decoder's picture is here, the clean latent's colours stand for it.
  const base = smooth || view === "image" ? (isHere(r, "image", frame) ? "image" : "x0") : view;
  const [v, u] = tileSize(base, r);
  const place = stepsOnly && !smooth ? frame - 1 : frame;
  context.drawImage(r.images[base], place * v, 0, v, u, 0, 0, W, H);
  if (!smooth) return true;
  context.globalCompositeOperation = "saturation"; // take that of grey: no colour
  context.fillStyle = "#808080";
  context.fillRect(0, 0, W, H);
  context.globalCompositeOperation = "source-over"; // lift black to grey, or it stays black
  context.fillStyle = "rgba(255, 255, 255, 0.25)";
  context.fillRect(0, 0, W, H);
  context.globalCompositeOperation = "multiply";
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(light(r.images.words, r, frame), 0, 0, W, H);
  return true;
}

// The index of the word that is shown. A run beside this one may have fewer words.
const wordOf = (r) => Math.min(state.word, r.of.words.length - 1);

// One tile of the attention sheet. Cut out first, so that scaling does not mix in its neighbours.
function light(sheet, r, frame) {
  const [w, h] = [sheet.width / r.steps_run, sheet.height / r.of.words.length];
  const tile = document.createElement("canvas");
  tile.width = w;
  tile.height = h;
  tile.getContext("2d").drawImage(sheet, (frame - 1) * w, wordOf(r) * h, w, h, 0, 0, w, h);
  return tile;
}

// ---- words ------------------------------------------------------------------------------------

const number = (x) => (x >= 9.95 ? x.toFixed(1) : x >= 0.995 ? x.toFixed(2) : x.toPrecision(2));
const percent = (x) => (x >= 0.0995 ? Math.round(100 * x) : (100 * x).toPrecision(2)) + "\u00a0%";
const steps = (n) => (n === 1 ? "1 step" : `${n} steps`);

function times(ratio, other) {
  if (ratio > 1.3) return `${number(ratio)} times as strong as ${other}`;
  if (ratio > 0.75) return `about as strong as ${other}`;
  return `${percent(ratio)} as strong as ${other}`;
}

// The root mean square of the init image's latent, as measured when noise was added; 0: not yet.
const spread = (r) => (r.ledger?.snr > 0 ? r.ledger.sigma_added * Math.sqrt(r.ledger.snr) : 0);
// How strong noise of this level is beside the init image.
const strongAs = (r, sigma) => sigma / (spread(r) || 1);

function headline(r) {
  if (reached(r) < 0) return r.failed ? "This run failed." : "The run at this strength starts.";
  if (state.frame === 0) return "This is the init image.";
  if (state.frame === last(r)) return r.steps_run ? `Finished, after ${steps(r.steps_run)}.`
    : "Finished.";
  return `You are at step ${state.frame} of ${r.steps_run}.`;
}

function story(r) {
  const n = r.steps_run, d = skipped(r), N = asked(r);
  if (reached(r) < 0) return r.failed ?? "";
  if (state.frame === 0) {
    const begin = "Nothing has happened yet. ";
    if (!n) return begin + "At this strength nothing will: no step is run.";
    const noise = `${begin}Next, noise (random fuzz) is added to it. `;
    if (!d) return `${noise}No step is skipped: the run starts at step 1.`;
    return noise + (d === 1 ? "The first step is skipped." : `The first ${d} steps are skipped.`);
  }
  if (state.frame === last(r)) {
    if (!n) return "No noise was added and no step was run. The encoder only turned the init " +
      "image into a latent, and the decoder turned the latent into a picture again.";
    const ratio = strongAs(r, sigmaAt(r, 1));
    if (ratio < 0.75) return "Little noise was added, so most of the init image stayed visible. " +
      "Only details were free to change. For more change, raise the strength.";
    if (ratio < 2) return "The noise added was about as strong as the picture. What stayed " +
      "visible was kept. What the noise hid was invented to fit the prompt.";
    return "Much noise was added, so little of the init image stayed visible. The prompt decided " +
      "most of the result. To keep more of the init image, lower the strength.";
  }
  const sigma = sigmaAt(r, state.frame), next = sigmaAt(r, state.frame + 1);
  const ratio = strongAs(r, sigma);
  if (state.frame === 1) {
    const which = d === 1 ? "step was" : `${d} of ${N} steps were`;
    return (d ? `The first ${which} skipped. ` : "") +
      `Noise has just been added to the init image. It is ${times(ratio, "the init image")}. ` +
      "The network reads the prompt and predicts which part of this is noise.";
  }
  const lowered =
    `This step lowers the noise level from \u03c3 = ${number(sigma)} to ${number(next)}.`;
  if (state.frame === n) return "This is the last step. " +
    (next > 0 ? lowered : `It removes the noise that is left, \u03c3 = ${number(sigma)}.`);
  if (ratio > 2) return "There is far more noise than picture, so only the large things are " +
    `decided: where they are, and in which colours. ${lowered}`;
  if (ratio > 0.75) return "Noise and picture are about equal. The large shapes are decided. The " +
    `steps now decide their parts and the shading. ${lowered}`;
  return `Most of the noise is gone. Only edges and small details are left to decide. ${lowered}`;
}

// The text below the picture: what the current view shows.
function about(r) {
  const step = isStep(r, state.frame), [w, h] = r.of.latent;
  const end = state.frame === 0
    ? "Here: the encoded init image, without noise." : "Here: the end of the run, without noise.";
  switch (state.view) {
    case "x":
      return ["The latent", step
        ? `(x). It has noise in it and is scaled as the network expects: ${w} \u00d7 ${h} points ` +
          "of four numbers each, shown as colours. The picture in it has " +
          `${percent(1 / Math.hypot(1, sigmaAt(r, state.frame)))} of its contrast.`
        : `(x). ${end}`];
    case "x0":
      return ["The clean latent", step
        ? "(x0), as predicted at this step: the latent minus all of the predicted noise. Early " +
          "predictions are vague, so a step removes only part of the noise, and then the network " +
          "predicts again."
        : `(x0). ${end}`];
    case "eps": {
      const part = step && 1 - sigmaAt(r, state.frame + 1) / sigmaAt(r, state.frame);
      return ["The predicted noise", step
        ? "(eps): the network\u2019s answer to the question \u201cWhich part of this is " +
          `noise?\u201d This step removes ${percent(part)} of it. ` +
          "Where shapes appear in it, the network disagrees with the picture so far."
        : "(eps). The network predicts noise only at steps."];
    }
    case "image":
      if (!isHere(r, "image", state.frame)) return ["The clean latent,", "in the model\u2019s own " +
        "colours. The decoder has not made a picture of it yet."];
      if (step) return ["The clean latent as a picture.", "The decoder turned it into pixels. " +
        "This would be the result if the run ended at this step."];
      return state.frame === 0
        ? ["The init image,", `encoded into a latent and decoded again, at ` +
          `${r.of.size.join(" \u00d7 ")} pixels. This is the result at strength 0.`]
        : ["The result,", "as minisd saves it."];
    default: {
      if (!r.of.words.length) return ["Words.", "The prompt has no words."];
      if (!step) return ["Attention to words.", "The network reads the prompt only at steps."];
      const share = r.shares[state.word][state.frame - 1];
      return ["Attention", `to \u201c${r.of.words[state.word]}\u201d. Where it is bright, the ` +
        "network pays more attention to the word than elsewhere; where dark, less. The word has " +
        `${percent(share)} of all attention at this step. Much of the rest goes to the end of ` +
        "the prompt, which represents all of it."];
    }
  }
}

// ---- the ledger -------------------------------------------------------------------------------

function ledger(r) {
  const l = r.ledger, N = asked(r), none = "\u2013", six = (x) => (x === null ? none : x.toFixed(6));
  const noisy = r.steps_run > 0 && l.sigma_added > 0;
  const called = l.sigma_expected !== null;
  return [
    ["steps asked", N, "the length of the whole schedule"],
    ["steps run", r.steps_run, `${N} \u00d7 ${r.strength}, rounded down`],
    ["steps skipped", skipped(r), "the first steps, which have the most noise"],
    ["noise added, \u03c3", noisy ? l.sigma_added.toFixed(4) : "0", "measured in the first latent"],
    ["noise expected, \u03c3", called ? l.sigma_expected.toFixed(4) : none,
      "by the network; if the noise added were different, the result would be worse"],
    ["as timestep t", called ? l.t_expected.toFixed(1) : none,
      "the network\u2019s own scale of noise levels: 0 to 999"],
    ["image gain", six(l.image_gain),
      "the factor of the init image in the first latent: should be 1"],
    ["noise gain", noisy && called ? six(l.sigma_added / l.sigma_expected) : none,
      "noise added divided by noise expected: should be 1"],
    ["signal to noise", noisy && l.snr > 0
      ? `${number(l.snr)} (${(10 * Math.log10(l.snr)).toFixed(1)} dB)` : none,
      "power of the init image divided by power of the noise"],
    ["image share", l.image_share === null ? "100\u00a0%" : percent(l.image_share),
      "how much of the init image\u2019s contrast the network sees at first"],
    ["network calls", l.calls, "how often the network predicted noise"],
  ];
}

// ---- the curve --------------------------------------------------------------------------------

function curve(r) {
  const N = asked(r), sigmas = r.of.sigmas;
  const width = $("tiles").clientWidth, height = 118, top = 14, cell = width / (N + 2);
  if (!width) return;
  const most = Math.sqrt(sigmas[0]);
  const X = (col) => ((col + 0.5) * cell).toFixed(1);
  // square roots: on a linear axis, low levels would look alike
  const Y = (sigma) => (height - (Math.sqrt(sigma) / most) * (height - top)).toFixed(1);
  const points = sigmas.map((sigma, i) => `${X(i + 1)},${Y(sigma)}`);
  const d = skipped(r), parts = [], labels = [];
  const even = spread(r);
  for (const level of [even || 1, 5, 10].filter((level) => level < sigmas[0] * 0.95)) {
    const label = `\u03c3 = ${level === even ? number(even) : level}`;
    parts.push(`<line class="grid" x1="0" x2="${width}" y1="${Y(level)}" y2="${Y(level)}"/>`);
    labels.push(`<text x="0" y="${Y(level) - 4}">${label}</text>`);
  }
  parts.push(`<line class="grid" x1="0" x2="${width}" y1="${height}" y2="${height}"/>`);
  if (r.steps_run) {
    const path = points.slice(d);
    const under = `M${X(d + 1)},${height}L${path.join("L")}L${X(N + 1)},${height}z`;
    parts.push(`<path class="area" d="${under}"/>`);
    if (d) parts.push(`<polyline class="skipped" points="${points.slice(0, d + 1).join(" ")}"/>`);
    parts.push(`<polyline class="run" points="${path.join(" ")}"/>`);
  } else parts.push(`<polyline class="skipped" points="${points.join(" ")}"/>`);
  const col = column(r, state.frame), level = state.frame > 0 ? sigmas[col - 1] : null;
  parts.push(`<line class="rule" x1="${X(col)}" x2="${X(col)}" y1="0" y2="${height}"/>`);
  if (r.steps_run) {
    const sigma = sigmas[d], x = Number(X(d + 1)), y = Number(Y(sigma));
    const label = `${width > 420 ? "the run starts" : "start"}, \u03c3 = ${number(sigma)}`;
    const right = x < width - 7.2 * label.length;
    parts.push(`<circle class="start" cx="${x}" cy="${y}" r="5"/>`,
      `<text class="start-label" x="${x + (right ? 10 : 4)}" y="${y - (right ? 4 : 12)}"` +
      ` text-anchor="${right ? "start" : "end"}">${label}</text>`);
  }
  parts.push(...labels);
  if (level !== null) parts.push(`<circle class="now" cx="${X(col)}" cy="${Y(level)}" r="4.5"/>`);
  $("curve").innerHTML = `<svg width="${width}" height="${height + 6}" role="img" ` +
    `aria-label="The noise level at each step, falling from ${number(sigmas[0])} to ` +
    `${number(sigmas[N])}. This run starts at ${number(sigmas[d])}.">` +
    `${parts.join("")}</svg>`;
}

// ---- showing ----------------------------------------------------------------------------------

const resultCells = [], tileCells = [], viewButtons = {};

function cells(parent, count, into, choose) {
  parent.parentElement.style.setProperty("--n", count);
  parent.replaceChildren();
  into.length = 0;
  for (let i = 0; i < count; i++) {
    const cell = document.createElement("div"), canvas = document.createElement("canvas");
    cell.append(canvas);
    cell.addEventListener("click", () => choose(i));
    parent.append(cell);
    into.push({ cell, canvas });
  }
}

function buildViews() {
  VIEWS.forEach(({ id, label, before }) => {
    if (before) {
      const sign = document.createElement("i");
      sign.textContent = before.trim();
      sign.classList.toggle("gap", !before.trim());
      $("views").append(sign);
    }
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    button.setAttribute("role", "radio");
    button.append(canvas, label);
    button.addEventListener("click", () => setView(id));
    $("views").append(button);
    viewButtons[id] = { button, canvas };
  });
}

// What depends on `data`, but not on `state`.
function build() {
  const root = document.documentElement.style;
  root.setProperty("--ratio", `${data.size[0]} / ${data.size[1]}`);
  root.setProperty("--aspect", data.size[0] / data.size[1]);
  $("latent-size").textContent = `${data.latent.join(" \u00d7 ")} points of four numbers each, ` +
    `for ${data.size.join(" \u00d7 ")} pixels.`;
  cells($("results"), data.runs.length, resultCells, (i) => setRun(i));
  $("strength").max = data.runs.length - 1;
  const columns = data.sigmas.length + 1;
  cells($("tiles"), columns, tileCells, (col) => setColumn(col, false));
  $("step").max = columns - 1;
  $("words").replaceChildren(...data.words.map((word, i) => {
    const button = document.createElement("button");
    const name = document.createElement("span"), share = document.createElement("small");
    button.setAttribute("role", "radio");
    name.textContent = word;
    button.append(name, share);
    button.addEventListener("click", () => { state.word = i; show(); });
    return button;
  }));
}

// The frame of another run that is like this one: an end, or the step nearest in noise level.
function likeFrame(other, r, frame) {
  if (frame <= 0) return 0;
  if (frame === last(r) || !other.steps_run) return last(other);
  const distance = (k) => Math.abs(Math.log(sigmaAt(other, k) / sigmaAt(r, frame)));
  let best = 1;
  for (let k = 2; k <= other.steps_run; k++) if (distance(k) < distance(best)) best = k;
  return best;
}

// The settings of a run beside this one, as far as they differ.
function differences(other, r) {
  const values = (x) => ({ ...x.of, strength: x.strength });
  const [a, b] = [values(other), values(r)];
  const names = ["prompt", "strength", "steps", "sampler", "schedule", "guidance", "seed"];
  const parts = names.filter((name) => a[name] !== b[name]).map((name) => `${name} ${a[name]}`);
  if (other.of.drawing !== r.of.drawing) parts.unshift("another drawing");
  return parts.join(", ") || "the same settings";
}

function placeName(r, frame) {
  return frame <= 0 ? "The init image"
    : frame === last(r) ? "The result" : `Step ${frame} of ${r.steps_run}`;
}

function show() {
  const r = run(), N = asked(r), playing = state.playing !== null;
  const painted = state.comparing || paint($("stage"), state.view, r, state.frame);
  if (state.comparing) {
    const stage = $("stage");
    stage.classList.remove("smooth");
    [stage.width, stage.height] = [data.initImage.width, data.initImage.height];
    stage.getContext("2d").drawImage(data.initImage, 0, 0);
  }
  $("nothing").hidden = painted;
  $("nothing-text").textContent = reached(r) < 0 ? "Nothing is here yet."
    : "The network predicts nothing here.";
  $("nothing-next").textContent = reached(r) < 0 ? ""
    : r.steps_run ? "Move to a step." : "At strength 0 there are no steps.";
  const view = state.view === "words" && data.words.length ? `\u201c${data.words[state.word]}\u201d`
    : VIEWS.find((v) => v.id === state.view).label;
  $("tag").textContent = state.comparing || state.frame === 0 ? "the init image"
    : state.frame === last(r) ? "the result" : `${view} at step ${state.frame}`;
  $("tag").hidden = reached(r) < 0 && !state.comparing;
  $("stage").setAttribute("aria-label", `${$("tag").textContent}, strength ${r.strength}`);
  if (beside) {
    const frame = likeFrame(beside, r, state.frame);
    if (!paint($("other"), state.view, beside, frame)) paint($("other"), "image", beside, frame);
    $("other-tag").textContent = placeName(beside, frame).toLowerCase();
    $("other-settings").textContent = differences(beside, r);
  }

  for (const [id, { button, canvas }] of Object.entries(viewButtons)) {
    paint(canvas, id, r, state.frame);
    button.setAttribute("aria-checked", id === state.view);
  }
  $("words").hidden = state.view !== "words";
  [...$("words").children].forEach((button, i) => {
    button.setAttribute("aria-checked", i === state.word);
    const share = r.shares[i]?.[state.frame - 1];
    button.lastChild.textContent = share === undefined ? "" : percent(share);
  });
  const [bold, rest] = reached(r) < 0 ? ["", ""] : about(r), strong = document.createElement("b");
  strong.textContent = bold;
  $("about").replaceChildren(strong, " " + rest);

  const isMoving = playing || reached(r) < last(r);
  $("narration").setAttribute("aria-live", isMoving ? "off" : "polite");
  $("headline").textContent = headline(r);
  $("story").textContent = story(r);

  $("strength").value = state.run;
  $("strength").setAttribute("aria-valuetext", `strength ${r.strength}`);
  $("strength-value").textContent = r.strength;
  $("even").textContent = spread(r)
    ? `At ${number(spread(r))}, the noise is as strong as the picture.` : "";
  $("strength-means").textContent = r.steps_run
    ? `${r.steps_run} of ${steps(N)} run, noise ${number(strongAs(r, sigmaAt(r, 1)))} times the init image`
    : `0 of ${steps(N)} run, no noise added`;
  resultCells.forEach(({ cell, canvas }, i) => {
    const other = data.runs[i];
    cell.classList.toggle("here", i === state.run);
    const isDone = reached(other) === last(other) && isHere(other, "image", last(other));
    // A finished run's picture is painted once.
    if (!isDone || canvas.dataset.painted !== "yes") paint(canvas, "image", other, last(other));
    canvas.dataset.painted = isDone ? "yes" : "no";
  });

  const col = column(r, state.frame);
  $("step").value = col;
  const place = placeName(r, state.frame);
  $("step").setAttribute("aria-valuetext", place);
  $("step-value").textContent = place;
  tileCells.forEach(({ cell, canvas }, i) => {
    const frame = frameAt(r, i), wasSkipped = i > 0 && frame < 1;
    cell.classList.toggle("skipped", wasSkipped);
    cell.dataset.step = i;
    cell.classList.toggle("here", i === col && frame <= reached(r));
    if (!wasSkipped && !paint(canvas, state.view, r, frame)) paint(canvas, "image", r, frame);
  });
  brackets(r);
  curve(r);

  $("ledger-strength").textContent = r.strength;
  $("ledger").replaceChildren(...(r.ledger ? ledger(r) : []).map(([term, value, means]) => {
    const row = document.createElement("div");
    for (const [tag, text] of [["dt", term], ["dd", value], ["dd", means]]) {
      const part = document.createElement(tag);
      part.textContent = text;
      row.append(part);
    }
    return row;
  }));
  $("play-label").textContent = playing ? "Pause" : "Play";
  $("play-icon").setAttribute("d", playing ? "M4 3h4v14H4zM12 3h4v14h-4z" : "M5 2.5v15L17.5 10z");
}

function brackets(r) {
  const cell = $("tiles").clientWidth / (asked(r) + 2);
  const part = (name, from, count, word) => {
    if (!count) return [];
    const span = document.createElement("span"), room = cell * count;
    span.className = name;
    span.style.gridColumn = `${from + 1} / span ${count}`;
    span.textContent =
      room > 110 ? `${steps(count)} ${word}` : room > 62 ? `${count} ${word}` : count;
    return [span];
  };
  const d = skipped(r);
  $("tiles").classList.toggle("tight", cell < 15); // too narrow for numbers
  $("brackets").replaceChildren(
    ...part("", 1, d, "skipped"), ...part("run", d + 1, r.steps_run, "run"));
}

// ---- actions ----------------------------------------------------------------------------------

// Another strength, at the same place: the step at the same noise level, or else the first step.
function setRun(i) {
  const before = run(), col = column(before, state.frame);
  const place = state.frame === 0 ? "start" : state.frame === last(before) ? "end" : "step";
  state.run = Math.max(0, Math.min(data.runs.length - 1, i));
  const r = run();
  if (place === "start") state.frame = 0;
  else if (place === "end") state.frame = last(r);
  else state.frame = Math.max(1, frameAt(r, col));
  state.frame = Math.max(0, Math.min(reached(r), state.frame));
  show();
  onRun();
}

function setFrame(frame) {
  state.frame = Math.max(0, Math.min(reached(run()), frame));
  show();
}

// A column of the Step slider. Skipped steps cannot be shown. A pointer that is over them moves to
// the nearer end of their range, so that a drag across them changes the frame once. Keys and clicks
// on a skipped tile jump over the range, in their direction.
function setColumn(col, dragging) {
  const r = run(), frame = frameAt(r, col), first = column(r, 1);
  if (col === 0 || frame > 0) setFrame(frame);
  else if (dragging) setFrame(2 * col < first ? 0 : 1);
  else setFrame(col > column(r, state.frame) ? 1 : 0);
}

function setView(view) {
  state.view = view;
  show();
}

function pause() {
  clearTimeout(state.playing);
  state.playing = null;
}

function play() {
  if (state.frame === reached(run())) state.frame = 0;
  const next = () => {
    state.frame = Math.min(reached(run()), state.frame + 1);
    const more = state.frame < reached(run());
    state.playing = more ? setTimeout(next, Math.max(180, 6000 / (run().steps_run + 2))) : null;
    show();
  };
  state.playing = setTimeout(next, 700);
  show();
}

function playOrPause() {
  if (state.playing === null) return play();
  pause();
  show();
}

function compare(on) {
  if (state.comparing === on) return;
  state.comparing = on;
  show();
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !data) return;
  if (event.target.closest("input:not([type=range]), select, textarea, .own-keys")) return;
  const act = {
    ArrowRight: () => { pause(); setFrame(state.frame + 1); },
    ArrowLeft: () => { pause(); setFrame(state.frame - 1); },
    ArrowUp: () => setRun(state.run + 1),
    ArrowDown: () => setRun(state.run - 1),
    Home: () => { pause(); setFrame(0); },
    End: () => { pause(); setFrame(last(run())); },
    d: () => compare(true),
  }[event.key];
  const view = VIEWS[Number(event.key) - 1];
  if (event.key === " ") {
    if (event.target.closest("button, a")) return; // the space bar presses that button
    playOrPause();
  } else if (act) {
    if (event.target === $("strength") && event.key !== "d") return; // the slider's own keys
    act();
  } else if (view) setView(view.id);
  else return;
  event.preventDefault();
}

function listen() {
  $("strength").addEventListener("input", (event) => setRun(Number(event.target.value)));
  let dragging = false; // whether a mouse or a finger holds the Step slider
  $("step").addEventListener("pointerdown", () => { dragging = true; });
  for (const name of ["pointerup", "pointercancel"]) {
    document.addEventListener(name, () => { dragging = false; });
  }
  $("step").addEventListener("input", (event) => {
    const col = Number(event.target.value); // read first: show() writes the slider's value
    pause();
    setColumn(col, dragging);
  });
  $("play").addEventListener("click", playOrPause);
  $("theme").addEventListener("click", toggleTheme);
  document.addEventListener("keydown", onKey);
  document.addEventListener("keyup", (event) => { if (event.key === "d") compare(false); });
  // After a click with the mouse, the space bar must play, not press the same button once more.
  document.addEventListener("click", (event) => {
    if (event.detail > 0) event.target.closest("button")?.blur();
  });
  $("figure").addEventListener("pointerdown", () => { if (data) compare(true); });
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    $("figure").addEventListener(name, () => compare(false));
  }
  $("figure").addEventListener("contextmenu", (event) => event.preventDefault());
  new ResizeObserver(() => {
    if (!data) return;
    brackets(run());
    curve(run());
  }).observe($("tiles"));
}

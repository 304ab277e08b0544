"use strict";

// The page shows what is in `state` and nothing else: change `state`, then call show().
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const N = data.sigmas.length - 1; // steps of the whole schedule
const state = { run: 0, frame: 0, view: "image", word: 0, playing: null, comparing: false };

// ---- frames -----------------------------------------------------------------------------------
// A run of n steps has n + 2 frames: the init image, the steps, the result. The Step slider has a
// column for every step of the schedule, skipped steps included: 0 is the init image, 1 to N are
// the steps, N + 1 is the result.

const run = () => data.runs[state.run];
const last = (r) => r.steps_run + 1;
const skipped = (r) => N - r.steps_run;
const column = (r, frame) => (frame === 0 ? 0 : skipped(r) + frame);
const frameAt = (r, col) => (col === 0 ? 0 : col - skipped(r)); // 0 or less for a skipped step
const isStep = (r, frame) => frame > 0 && frame < last(r);
const sigmaAt = (r, frame) => data.sigmas[skipped(r) + frame - 1];

// ---- pictures ---------------------------------------------------------------------------------

const VIEWS = [
  { id: "x", label: "latent", before: "" },
  { id: "x0", label: "clean latent", before: "=" },
  { id: "eps", label: "noise", before: "+" },
  { id: "image", label: "picture", before: " " },
  { id: "words", label: "words", before: " " },
];
const sheets = data.runs.map(() => ({})); // an Image for each run and view
const tileSize = (view) => (view === "image" || view === "words" ? imageTile : data.latent);
let imageTile = data.size; // smaller if the page was made with smaller tiles
let initImage = null;

function load(uri) {
  const image = new Image();
  image.src = uri;
  return image.decode().then(() => image);
}

// Paint a view of a frame. Returns false if the frame has no such view.
function paint(canvas, view, r, frame) {
  const images = sheets[data.runs.indexOf(r)];
  const stepsOnly = view === "eps" || view === "words"; // no tile for init image and result
  const smooth = view === "words";
  const [w, h] = tileSize(view);
  const scale = smooth ? Math.max(1, Math.round(256 / w)) : 1;
  canvas.width = w * scale;
  canvas.height = h * scale;
  canvas.classList.toggle("smooth", smooth);
  if (!images[view] || (stepsOnly && !isStep(r, frame))) return false;
  const context = canvas.getContext("2d");
  if (!smooth) {
    context.drawImage(images[view], (stepsOnly ? frame - 1 : frame) * w, 0, w, h, 0, 0, w, h);
    return true;
  }
  const [W, H] = [canvas.width, canvas.height];
  context.imageSmoothingEnabled = false;
  context.drawImage(images.image, frame * w, 0, w, h, 0, 0, W, H);
  context.globalCompositeOperation = "saturation"; // take that of grey: no colour
  context.fillStyle = "#808080";
  context.fillRect(0, 0, W, H);
  context.globalCompositeOperation = "source-over"; // lift black to grey, or it stays black
  context.fillStyle = "rgba(255, 255, 255, 0.25)";
  context.fillRect(0, 0, W, H);
  context.globalCompositeOperation = "multiply";
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(light(images.words, r, frame), 0, 0, W, H);
  return true;
}

// One tile of the attention sheet. Cut out first, so that scaling does not mix in its neighbours.
function light(sheet, r, frame) {
  const [w, h] = [sheet.width / r.steps_run, sheet.height / data.words.length];
  const tile = document.createElement("canvas");
  tile.width = w;
  tile.height = h;
  tile.getContext("2d").drawImage(sheet, (frame - 1) * w, state.word * h, w, h, 0, 0, w, h);
  return tile;
}

// ---- words ------------------------------------------------------------------------------------

const number = (x) => (x >= 9.95 ? x.toFixed(1) : x >= 0.995 ? x.toFixed(2) : x.toPrecision(2));
const percent = (x) => (x >= 0.0995 ? Math.round(100 * x) : (100 * x).toPrecision(2)) + "\u00a0%";
const steps = (n) => (n === 1 ? "1 step" : `${n} steps`);

function times(sigma, other) {
  if (sigma > 1.3) return `${number(sigma)} times as strong as ${other}`;
  if (sigma > 0.75) return `about as strong as ${other}`;
  return `${percent(sigma)} as strong as ${other}`;
}

function headline(r) {
  if (state.frame === 0) return "This is the init image.";
  if (state.frame === last(r)) return r.steps_run ? `Finished, after ${steps(r.steps_run)}.`
    : "Finished.";
  return `You are at step ${state.frame} of ${r.steps_run}.`;
}

function story(r) {
  const n = r.steps_run, d = skipped(r);
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
    const sigma = sigmaAt(r, 1);
    if (sigma < 0.75) return "Little noise was added, so most of the init image stayed visible. " +
      "Only details were free to change. For more change, raise the strength.";
    if (sigma < 2) return "The noise added was about as strong as the picture. What stayed " +
      "visible was kept. What the noise hid was invented to fit the prompt.";
    return "Much noise was added, so little of the init image stayed visible. The prompt decided " +
      "most of the result. To keep more of the init image, lower the strength.";
  }
  const sigma = sigmaAt(r, state.frame), next = sigmaAt(r, state.frame + 1);
  if (state.frame === 1) {
    const which = d === 1 ? "step was" : `${d} of ${N} steps were`;
    return (d ? `The first ${which} skipped. ` : "") +
      `Noise has just been added to the init image. It is ${times(sigma, "the init image")}. ` +
      "The network reads the prompt and predicts which part of this is noise.";
  }
  const lowered =
    `This step lowers the noise level from \u03c3 = ${number(sigma)} to ${number(next)}.`;
  if (state.frame === n) return "This is the last step. " +
    (next > 0 ? lowered : `It removes the noise that is left, \u03c3 = ${number(sigma)}.`);
  if (sigma > 2) return "There is far more noise than picture, so only the large things are " +
    `decided: where they are, and in which colours. ${lowered}`;
  if (sigma > 0.75) return "Noise and picture are about equal. The large shapes are decided. The " +
    `steps now decide their parts and the shading. ${lowered}`;
  return `Most of the noise is gone. Only edges and small details are left to decide. ${lowered}`;
}

// The text below the picture: what the current view shows.
function about(r) {
  const step = isStep(r, state.frame), [w, h] = data.latent;
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
      if (step) return ["The clean latent as a picture.", "The decoder turned it into pixels. " +
        "This would be the result if the run ended at this step."];
      return state.frame === 0
        ? ["The init image,", `encoded into a latent and decoded again, at ` +
          `${data.size.join(" \u00d7 ")} pixels. This is the result at strength 0.`]
        : ["The result,", "as minisd saves it."];
    default: {
      if (!data.words.length) return ["Words.", "The prompt has no words."];
      if (!step) return ["Attention to words.", "The network reads the prompt only at steps."];
      const share = r.shares[state.word][state.frame - 1];
      return ["Attention", `to \u201c${data.words[state.word]}\u201d. Where it is bright, the ` +
        "network pays more attention to the word than elsewhere; where dark, less. The word has " +
        `${percent(share)} of all attention at this step. Much of the rest goes to the end of ` +
        "the prompt, which represents all of it."];
    }
  }
}

// ---- the ledger -------------------------------------------------------------------------------

function ledger(r) {
  const l = r.ledger, none = "\u2013", six = (x) => (x === null ? none : x.toFixed(6));
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
  const width = $("tiles").clientWidth, height = 118, top = 14, cell = width / (N + 2);
  if (!width) return;
  const most = Math.sqrt(data.sigmas[0]);
  const X = (col) => ((col + 0.5) * cell).toFixed(1);
  // square roots: on a linear axis, low levels would look alike
  const Y = (sigma) => (height - (Math.sqrt(sigma) / most) * (height - top)).toFixed(1);
  const points = data.sigmas.map((sigma, i) => `${X(i + 1)},${Y(sigma)}`);
  const d = skipped(r), parts = [], labels = [];
  for (const level of [1, 5, 10].filter((level) => level < data.sigmas[0] * 0.95)) {
    const even = level === 1 && width > 420;
    const label = `\u03c3 = ${level}${even ? ": as much noise as picture" : ""}`;
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
  const col = column(r, state.frame), level = state.frame > 0 ? data.sigmas[col - 1] : null;
  parts.push(`<line class="rule" x1="${X(col)}" x2="${X(col)}" y1="0" y2="${height}"/>`);
  if (r.steps_run) {
    const sigma = data.sigmas[d], x = Number(X(d + 1)), y = Number(Y(sigma));
    const label = `${width > 420 ? "the run starts" : "start"}, \u03c3 = ${number(sigma)}`;
    const right = x < width - 7.2 * label.length;
    parts.push(`<circle class="start" cx="${x}" cy="${y}" r="5"/>`,
      `<text class="start-label" x="${x + (right ? 10 : 4)}" y="${y - (right ? 4 : 12)}"` +
      ` text-anchor="${right ? "start" : "end"}">${label}</text>`);
  }
  parts.push(...labels);
  if (level !== null) parts.push(`<circle class="now" cx="${X(col)}" cy="${Y(level)}" r="4.5"/>`);
  $("curve").innerHTML = `<svg width="${width}" height="${height + 6}" role="img" ` +
    `aria-label="The noise level at each step, falling from ${number(data.sigmas[0])} to ` +
    `${number(data.sigmas[N])}. This run starts at ${number(data.sigmas[d])}.">` +
    `${parts.join("")}</svg>`;
}

// ---- showing ----------------------------------------------------------------------------------

const resultCells = [], tileCells = [], viewButtons = {};

function cells(parent, count, into, choose) {
  parent.parentElement.style.setProperty("--n", count);
  for (let i = 0; i < count; i++) {
    const cell = document.createElement("div"), canvas = document.createElement("canvas");
    cell.append(canvas);
    cell.addEventListener("click", () => choose(i));
    parent.append(cell);
    into.push({ cell, canvas });
  }
}

function build() {
  const root = document.documentElement.style;
  root.setProperty("--ratio", `${data.size[0]} / ${data.size[1]}`);
  root.setProperty("--aspect", data.size[0] / data.size[1]);
  $("prompt").textContent = data.prompt;
  $("latent-size").textContent = `${data.latent.join(" \u00d7 ")} points of four numbers each, ` +
    `for ${data.size.join(" \u00d7 ")} pixels.`;
  $("facts").textContent = `${data.model}; sampler ${data.sampler}, schedule ${data.schedule}, ` +
    `guidance ${data.guidance}, seed ${data.seed}; minisd ${data.version}. ` +
    "Everything is in this file. It loads nothing from the network.";
  $("command").textContent = data.command;

  cells($("results"), data.runs.length, resultCells, (i) => setRun(i));
  data.runs.forEach((r, i) => paint(resultCells[i].canvas, "image", r, last(r)));
  $("strength").max = data.runs.length - 1;
  cells($("tiles"), N + 2, tileCells, (col) => setColumn(col, false));
  $("step").max = N + 1;

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
  data.words.forEach((word, i) => {
    const button = document.createElement("button");
    const name = document.createElement("span"), share = document.createElement("small");
    button.setAttribute("role", "radio");
    name.textContent = word;
    button.append(name, share);
    button.addEventListener("click", () => { state.word = i; show(); });
    $("words").append(button);
  });
}

function show() {
  const r = run(), playing = state.playing !== null;
  const painted = state.comparing || paint($("stage"), state.view, r, state.frame);
  if (state.comparing) {
    const stage = $("stage");
    stage.classList.remove("smooth");
    [stage.width, stage.height] = [initImage.width, initImage.height];
    stage.getContext("2d").drawImage(initImage, 0, 0);
  }
  $("nothing").hidden = painted;
  $("nothing-next").textContent =
    r.steps_run ? "Move to a step." : "At strength 0 there are no steps.";
  const view = state.view === "words" && data.words.length ? `\u201c${data.words[state.word]}\u201d`
    : VIEWS.find((v) => v.id === state.view).label;
  $("tag").textContent = state.comparing || state.frame === 0 ? "the init image"
    : state.frame === last(r) ? "the result" : `${view} at step ${state.frame}`;
  $("stage").setAttribute("aria-label", `${$("tag").textContent}, strength ${r.strength}`);

  for (const [id, { button, canvas }] of Object.entries(viewButtons)) {
    paint(canvas, id, r, state.frame);
    button.setAttribute("aria-checked", id === state.view);
  }
  $("words").hidden = state.view !== "words";
  [...$("words").children].forEach((button, i) => {
    button.setAttribute("aria-checked", i === state.word);
    const step = isStep(r, state.frame);
    button.lastChild.textContent = step ? percent(r.shares[i][state.frame - 1]) : "";
  });
  const [bold, rest] = about(r), strong = document.createElement("b");
  strong.textContent = bold;
  $("about").replaceChildren(strong, " " + rest);

  $("narration").setAttribute("aria-live", playing ? "off" : "polite");
  $("headline").textContent = headline(r);
  $("story").textContent = story(r);

  $("strength").value = state.run;
  $("strength").setAttribute("aria-valuetext", `strength ${r.strength}`);
  $("strength-value").textContent = r.strength;
  $("strength-means").textContent = r.steps_run
    ? `${r.steps_run} of ${steps(N)} run, noise ${number(sigmaAt(r, 1))} times the init image`
    : `0 of ${steps(N)} run, no noise added`;
  resultCells.forEach(({ cell }, i) => cell.classList.toggle("here", i === state.run));

  const col = column(r, state.frame);
  $("step").value = col;
  const place = state.frame === 0 ? "The init image"
    : state.frame === last(r) ? "The result" : `Step ${state.frame} of ${r.steps_run}`;
  $("step").setAttribute("aria-valuetext", place);
  $("step-value").textContent = place;
  tileCells.forEach(({ cell, canvas }, i) => {
    const frame = frameAt(r, i), wasSkipped = i > 0 && frame < 1;
    cell.classList.toggle("skipped", wasSkipped);
    cell.dataset.step = i;
    cell.classList.toggle("here", i === col);
    if (!wasSkipped && !paint(canvas, state.view, r, frame)) paint(canvas, "image", r, frame);
  });
  brackets(r);
  curve(r);

  $("ledger-strength").textContent = r.strength;
  $("ledger").replaceChildren(...ledger(r).map(([term, value, means]) => {
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
  const cell = $("tiles").clientWidth / (N + 2);
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
  show();
}

function setFrame(frame) {
  state.frame = Math.max(0, Math.min(last(run()), frame));
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
  if (state.frame === last(run())) state.frame = 0;
  const next = () => {
    state.frame += 1;
    const more = state.frame < last(run());
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
  if (event.ctrlKey || event.metaKey || event.altKey) return;
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
  $("figure").addEventListener("pointerdown", () => compare(true));
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    $("figure").addEventListener(name, () => compare(false));
  }
  $("figure").addEventListener("contextmenu", (event) => event.preventDefault());
  new ResizeObserver(() => { brackets(run()); curve(run()); }).observe($("tiles"));
}

async function start() {
  initImage = await load(data.init_image);
  await Promise.all(data.runs.flatMap((r, i) =>
    Object.entries(r.sheets).map(async ([view, uri]) => { sheets[i][view] = await load(uri); })));
  const first = sheets[0].image, tiles = last(data.runs[0]) + 1;
  imageTile = [first.width / tiles, first.height];
  const distance = (r) => Math.abs(r.strength - 0.7);
  state.run = data.runs.reduce(
    (best, r, i) => (distance(r) < distance(data.runs[best]) ? i : best), 0);
  state.frame = last(run());
  build();
  listen();
  show();
  document.documentElement.dataset.ready = "yes";
}

start();

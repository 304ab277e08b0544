"use strict";

// What is on the page follows from `state` alone: change it, then call show().
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const N = data.sigmas.length - 1; // steps of the whole schedule
const state = { run: 0, frame: 0, view: "image", word: 0, playing: null, peek: false };

// ---- frames -----------------------------------------------------------------------------------
// A run of n steps has n + 2 frames: the drawing, its steps, the result. On the rail of the whole
// schedule they stand in columns 0 (the drawing), 1 to N (the steps, the skipped ones too), N + 1.

const run = () => data.runs[state.run];
const last = (r) => r.run + 1;
const skipped = (r) => N - r.run;
const column = (r, frame) => (frame === 0 ? 0 : skipped(r) + frame);
const frameAt = (r, col) => (col === 0 ? 0 : col - skipped(r)); // negative or 0 where skipped
const isStep = (r, frame) => frame > 0 && frame < last(r);
const sigmaAt = (r, frame) => data.sigmas[skipped(r) + frame - 1];

// ---- pictures ---------------------------------------------------------------------------------

const VIEWS = [
  { id: "x", label: "goes in", before: "" },
  { id: "x0", label: "belief", before: "=" },
  { id: "eps", label: "noise", before: "+" },
  { id: "image", label: "picture", before: " " },
  { id: "words", label: "words", before: " " },
];
const sheets = data.runs.map(() => ({})); // per run and view, an Image
const tileSize = (view) => (view === "image" || view === "words" ? imageTile : data.latent);
let imageTile = data.size; // smaller where the page was made with smaller tiles
let drawing = null;

function load(uri) {
  const image = new Image();
  image.src = uri;
  return image.decode().then(() => image);
}

// Paint a view of a frame. False where there is nothing to show.
function paint(canvas, view, r, frame) {
  const images = sheets[data.runs.indexOf(r)];
  const inner = view === "eps" || view === "words";
  const smooth = view === "words";
  const [w, h] = tileSize(view);
  const scale = smooth ? Math.max(1, Math.round(256 / w)) : 1;
  canvas.width = w * scale;
  canvas.height = h * scale;
  canvas.classList.toggle("smooth", smooth);
  if (!images[view] || (inner && !isStep(r, frame))) return false;
  const context = canvas.getContext("2d");
  if (!smooth) {
    context.drawImage(images[view], (inner ? frame - 1 : frame) * w, 0, w, h, 0, 0, w, h);
    return true;
  }
  const [W, H] = [canvas.width, canvas.height];
  context.imageSmoothingEnabled = false;
  context.drawImage(images.image, frame * w, 0, w, h, 0, 0, W, H);
  context.globalCompositeOperation = "saturation"; // of grey: none
  context.fillStyle = "#808080";
  context.fillRect(0, 0, W, H);
  context.globalCompositeOperation = "source-over"; // black becomes grey, to be lit
  context.fillStyle = "rgba(255, 255, 255, 0.25)";
  context.fillRect(0, 0, W, H);
  context.globalCompositeOperation = "multiply";
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(light(images.words, r, frame), 0, 0, W, H);
  return true;
}

// The tile of the attention sheet, alone: enlarging it must not mix in its neighbours.
function light(sheet, r, frame) {
  const [w, h] = [sheet.width / r.run, sheet.height / data.words.length];
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

function times(sigma, what) {
  if (sigma > 1.3) return `${number(sigma)} times as strong as ${what}`;
  if (sigma > 0.75) return `about as strong as ${what}`;
  return `${percent(sigma)} as strong as ${what}`;
}

function headline(r) {
  if (state.frame === 0) return "This is the drawing.";
  if (state.frame === last(r)) return r.run ? `Finished, after ${steps(r.run)}.` : "Finished.";
  return `You are at step ${state.frame} of ${r.run}.`;
}

function story(r) {
  const n = r.run, d = skipped(r);
  if (state.frame === 0) {
    const begin = "Nothing has happened yet. ";
    if (!n) return begin + "At this strength nothing will: no step is run.";
    if (!d) return begin + "Next it is mixed with noise, random fuzz, and no step is skipped.";
    return `${begin}Next it is mixed with noise, random fuzz, and put in after the first ` +
      (d === 1 ? "step, which is skipped." : `${d} steps, which are skipped.`);
  }
  if (state.frame === last(r)) {
    if (!n) return "No noise was put in and no step was run. The drawing was only made small and " +
      "large again, by the encoder and the decoder.";
    const sigma = sigmaAt(r, 1);
    if (sigma < 0.75) return "Little noise went in, so most of the drawing could still be seen. " +
      "Only details were free to change. For more, raise the strength.";
    if (sigma < 2) return "About as much noise as picture went in. What shone through was kept, " +
      "and what the noise had hidden was made up to fit the words.";
    return "Much noise went in, and little of the drawing shone through. The words decided most " +
      "of it. To keep more of the drawing, lower the strength.";
  }
  const sigma = sigmaAt(r, state.frame), next = sigmaAt(r, state.frame + 1);
  if (state.frame === 1) {
    const which = d === 1 ? "step was" : `${d} of ${N} steps were`;
    return (d ? `The first ${which} skipped. ` : "") +
      `The drawing has just been mixed with noise ${times(sigma, "itself")}. ` +
      "Knowing the words, the network now guesses which part of this is noise.";
  }
  const lowered = `This step lowers the noise from \u03c3 = ${number(sigma)} to ${number(next)}.`;
  if (state.frame === n) return "The last step. " +
    (next > 0 ? lowered : `The noise that is left, \u03c3 = ${number(sigma)}, is taken out.`);
  if (sigma > 2) return "There is far more noise than picture, so only the large things can be " +
    `settled: what is where, in which colours. ${lowered}`;
  if (sigma > 0.75) return "Noise and picture are about even. The large shapes stand; their " +
    `parts and the shading are being decided. ${lowered}`;
  return `Most of the noise is gone. Edges and small details are left to decide. ${lowered}`;
}

function about(r) {
  const step = isStep(r, state.frame), [w, h] = data.latent;
  const end = state.frame === 0
    ? "the drawing, without noise." : "the end of the run, without noise.";
  switch (state.view) {
    case "x":
      return ["What goes in", step
        ? `(x). The picture so far with its noise, as the network is shown it: ${w} \u00d7 ${h} ` +
          `points of four numbers, drawn as colours. The picture has faded to ` +
          `${percent(1 / Math.hypot(1, sigmaAt(r, state.frame)))} of its contrast.`
        : `(x). Here it is ${end}`];
    case "x0":
      return ["What it believes", step
        ? "(x0). What goes in, minus all the noise that the network sees in it. Early on it is a " +
          "vague guess. That is why only a part of the noise is taken away, and it is asked again."
        : `(x0). Here it is ${end}`];
    case "eps": {
      const part = step && 1 - sigmaAt(r, state.frame + 1) / sigmaAt(r, state.frame);
      return ["The noise it sees", step
        ? `(eps). The network\u2019s answer to \u201cwhich part of this is noise?\u201d. At this ` +
          `step ${percent(part)} of it goes. ` +
          "Where it looks like more than fuzz, the network disagrees with the picture so far."
        : "(eps). The network is asked at steps only."];
    }
    case "image":
      if (step) return ["The belief as a picture.", "The decoder has turned the belief into " +
        "pixels. This is what you would get if it all ended at this step."];
      return state.frame === 0
        ? ["The drawing,", `after the encoder and the decoder: ${data.size.join(" \u00d7 ")} ` +
          "pixels, squeezed into the latent and unfolded again. Strength 0 gives this."]
        : ["The result,", "as minisd saves it."];
    default: {
      if (!data.words.length) return ["Words:", "the prompt has none."];
      if (!step) return ["Where it looks.", "The network reads the words at steps only."];
      const share = r.shares[state.word][state.frame - 1];
      return ["Where it looks", `when it reads \u201c${data.words[state.word]}\u201d: bright ` +
        `where it pays more attention to the word than elsewhere, dark where less. The word has ` +
        `${percent(share)} of all attention at this step; much of the rest goes to the ` +
        "prompt\u2019s end, which stands for all of it."];
    }
  }
}

// ---- the ledger -------------------------------------------------------------------------------

function ledger(r) {
  const l = r.ledger, none = "\u2013", six = (x) => (x === null ? none : x.toFixed(6));
  const noisy = r.run > 0 && l.sigma_put > 0;
  const asked = l.sigma_told !== null;
  return [
    ["steps asked", N, "the length of the whole schedule"],
    ["steps run", r.run, `${N} \u00d7 ${r.strength}, rounded down`],
    ["steps skipped", skipped(r), "at the beginning, where there is most noise"],
    ["noise put in, \u03c3", noisy ? l.sigma_put.toFixed(4) : "0", "measured in the mixture"],
    ["noise told, \u03c3", asked ? l.sigma_told.toFixed(4) : none,
      "what the network is told to expect; if it were not what was put in, it would draw worse"],
    ["as timestep t", asked ? l.t_told.toFixed(1) : none, "how the network counts noise: 0 to 999"],
    ["image gain", six(l.image_gain), "the factor on the drawing in the mixture: should be 1"],
    ["noise gain", noisy && asked ? six(l.sigma_put / l.sigma_told) : none,
      "put in over told: should be 1"],
    ["signal to noise", noisy && l.snr > 0
      ? `${number(l.snr)} (${(10 * Math.log10(l.snr)).toFixed(1)} dB)` : none,
      "energy of the drawing over energy of the noise"],
    ["drawing survives", l.share_of_image === null ? "100\u00a0%" : percent(l.share_of_image),
      "its contrast in what the network sees first"],
    ["network calls", l.calls, "how often the network was asked"],
  ];
}

// ---- the curve --------------------------------------------------------------------------------

function curve(r) {
  const width = $("tiles").clientWidth, height = 118, top = 14, cell = width / (N + 2);
  if (!width) return;
  const most = Math.sqrt(data.sigmas[0]);
  const X = (col) => ((col + 0.5) * cell).toFixed(1);
  const Y = (sigma) => (height - (Math.sqrt(sigma) / most) * (height - top)).toFixed(1); // roots
  const points = data.sigmas.map((sigma, i) => `${X(i + 1)},${Y(sigma)}`);
  const d = skipped(r), parts = [], labels = [];
  for (const level of [1, 5, 10].filter((level) => level < data.sigmas[0] * 0.95)) {
    const even = level === 1 && width > 420;
    const said = `\u03c3 = ${level}${even ? ": as much noise as picture" : ""}`;
    parts.push(`<line class="grid" x1="0" x2="${width}" y1="${Y(level)}" y2="${Y(level)}"/>`);
    labels.push(`<text x="0" y="${Y(level) - 4}">${said}</text>`);
  }
  parts.push(`<line class="grid" x1="0" x2="${width}" y1="${height}" y2="${height}"/>`);
  if (r.run) {
    const path = points.slice(d);
    const under = `M${X(d + 1)},${height}L${path.join("L")}L${X(N + 1)},${height}z`;
    parts.push(`<path class="area" d="${under}"/>`);
    if (d) parts.push(`<polyline class="skipped" points="${points.slice(0, d + 1).join(" ")}"/>`);
    parts.push(`<polyline class="run" points="${path.join(" ")}"/>`);
  } else parts.push(`<polyline class="skipped" points="${points.join(" ")}"/>`);
  const col = column(r, state.frame), here = state.frame > 0 ? data.sigmas[col - 1] : null;
  parts.push(`<line class="rule" x1="${X(col)}" x2="${X(col)}" y1="0" y2="${height}"/>`);
  if (r.run) {
    const sigma = data.sigmas[d], x = Number(X(d + 1)), y = Number(Y(sigma));
    const entry = `${width > 420 ? "the drawing goes in" : "goes in"}, \u03c3 = ${number(sigma)}`;
    const right = x < width - 7.2 * entry.length;
    parts.push(`<circle class="entry" cx="${x}" cy="${y}" r="5"/>`,
      `<text class="entry-said" x="${x + (right ? 10 : 4)}" y="${y - (right ? 4 : 12)}"` +
      ` text-anchor="${right ? "start" : "end"}">${entry}</text>`);
  }
  parts.push(...labels);
  if (here !== null) parts.push(`<circle class="now" cx="${X(col)}" cy="${Y(here)}" r="4.5"/>`);
  $("curve").innerHTML = `<svg width="${width}" height="${height + 6}" role="img" ` +
    `aria-label="Noise at each step, falling from ${number(data.sigmas[0])} to ` +
    `${number(data.sigmas[N])}; this run begins at ${number(data.sigmas[d])}">` +
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
  $("latent-said").textContent = `here ${data.latent.join(" \u00d7 ")} points with four numbers ` +
    `each, for ${data.size.join(" \u00d7 ")} pixels.`;
  $("facts").textContent = `${data.model}; sampler ${data.sampler}, schedule ${data.schedule}, ` +
    `guidance ${data.guidance}, seed ${data.seed}; minisd ${data.version}. ` +
    "Everything is in this file: it asks for nothing from anywhere.";
  $("command").textContent = data.command;

  cells($("results"), data.runs.length, resultCells, (i) => setRun(i));
  data.runs.forEach((r, i) => paint(resultCells[i].canvas, "image", r, last(r)));
  $("strength").max = data.runs.length - 1;
  cells($("tiles"), N + 2, tileCells, (col) => setColumn(col));
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
  const shown = state.peek ? true : paint($("stage"), state.view, r, state.frame);
  if (state.peek) {
    const stage = $("stage");
    stage.classList.remove("smooth");
    [stage.width, stage.height] = [drawing.width, drawing.height];
    stage.getContext("2d").drawImage(drawing, 0, 0);
  }
  $("nothing").hidden = shown;
  $("nothing-next").textContent = r.run ? "Move on to a step." : "At strength 0 there is no step.";
  const view = state.view === "words" && data.words.length ? `\u201c${data.words[state.word]}\u201d`
    : VIEWS.find((v) => v.id === state.view).label;
  $("tag").textContent = state.peek || state.frame === 0 ? "the drawing"
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

  $("told").setAttribute("aria-live", playing ? "off" : "polite");
  $("headline").textContent = headline(r);
  $("story").textContent = story(r);

  $("strength").value = state.run;
  $("strength").setAttribute("aria-valuetext", `strength ${r.strength}`);
  $("strength-said").textContent = r.strength;
  $("strength-means").textContent = r.run
    ? `${r.run} of ${steps(N)} run, noise ${number(sigmaAt(r, 1))} times the drawing`
    : `none of ${steps(N)} run, no noise put in`;
  resultCells.forEach(({ cell }, i) => cell.classList.toggle("here", i === state.run));

  const col = column(r, state.frame);
  $("step").value = col;
  const said = state.frame === 0 ? "The drawing"
    : state.frame === last(r) ? "The result" : `Step ${state.frame} of ${r.run}`;
  $("step").setAttribute("aria-valuetext", said);
  $("step-said").textContent = said;
  tileCells.forEach(({ cell, canvas }, i) => {
    const frame = frameAt(r, i), missing = i > 0 && frame < 1;
    cell.classList.toggle("skipped", missing);
    cell.dataset.step = i;
    cell.classList.toggle("here", i === col);
    if (!missing && !paint(canvas, state.view, r, frame)) paint(canvas, "image", r, frame);
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
  $("play-said").textContent = playing ? "Pause" : "Play";
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
  $("tiles").classList.toggle("tight", cell < 15); // no room for numbers
  $("brackets").replaceChildren(...part("", 1, d, "skipped"), ...part("run", d + 1, r.run, "run"));
}

// ---- doing ------------------------------------------------------------------------------------

// Another strength, at the same place: a step at the same noise, or the first that is run.
function setRun(i) {
  const before = run(), col = column(before, state.frame);
  const where = state.frame === 0 ? "start" : state.frame === last(before) ? "end" : "step";
  state.run = Math.max(0, Math.min(data.runs.length - 1, i));
  const r = run();
  if (where === "start") state.frame = 0;
  else if (where === "end") state.frame = last(r);
  else state.frame = Math.max(1, frameAt(r, col));
  show();
}

function setFrame(frame) {
  state.frame = Math.max(0, Math.min(last(run()), frame));
  show();
}

// A place on the rail; where steps were skipped, on to the first that was run, or back to 0.
function setColumn(col) {
  const r = run(), frame = frameAt(r, col);
  if (col > 0 && frame < 1) setFrame(state.frame === 0 ? 1 : 0);
  else setFrame(frame);
}

function setView(view) {
  state.view = view;
  show();
}

function play(on) {
  clearTimeout(state.playing);
  state.playing = null;
  if (on) {
    if (state.frame === last(run())) state.frame = 0;
    const next = () => {
      state.frame += 1;
      const more = state.frame < last(run());
      state.playing = more ? setTimeout(next, Math.max(180, 6000 / (run().run + 2))) : null;
      show();
    };
    state.playing = setTimeout(next, 700);
  }
  show();
}

function peek(on) {
  if (state.peek === on) return;
  state.peek = on;
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
    ArrowRight: () => { play(false); setFrame(state.frame + 1); },
    ArrowLeft: () => { play(false); setFrame(state.frame - 1); },
    ArrowUp: () => setRun(state.run + 1),
    ArrowDown: () => setRun(state.run - 1),
    Home: () => setFrame(0),
    End: () => setFrame(last(run())),
    d: () => peek(true),
  }[event.key];
  const view = VIEWS[Number(event.key) - 1];
  if (event.key === " ") {
    if (event.target.closest("button, a")) return; // it presses that
    play(state.playing === null);
  } else if (act) {
    if (event.target === $("strength") && event.key !== "d") return; // the slider's own keys
    act();
  } else if (view) setView(view.id);
  else return;
  event.preventDefault();
}

function listen() {
  $("strength").addEventListener("input", (event) => setRun(Number(event.target.value)));
  $("step").addEventListener("input", (event) => {
    play(false);
    setColumn(Number(event.target.value));
  });
  $("play").addEventListener("click", () => play(state.playing === null));
  $("theme").addEventListener("click", toggleTheme);
  document.addEventListener("keydown", onKey);
  document.addEventListener("keyup", (event) => { if (event.key === "d") peek(false); });
  // after a click with the mouse, the space bar plays again instead of pressing the same button
  document.addEventListener("click", (event) => {
    if (event.detail > 0) event.target.closest("button")?.blur();
  });
  $("figure").addEventListener("pointerdown", () => peek(true));
  for (const name of ["pointerup", "pointercancel", "pointerleave"]) {
    $("figure").addEventListener(name, () => peek(false));
  }
  $("figure").addEventListener("contextmenu", (event) => event.preventDefault());
  new ResizeObserver(() => { brackets(run()); curve(run()); }).observe($("tiles"));
}

async function start() {
  drawing = await load(data.drawing);
  await Promise.all(data.runs.flatMap((r, i) =>
    Object.entries(r.sheets).map(async ([view, uri]) => { sheets[i][view] = await load(uri); })));
  const first = sheets[0].image, tiles = last(data.runs[0]) + 1;
  imageTile = [first.width / tiles, first.height];
  const near = (r) => Math.abs(r.strength - 0.7);
  state.run = data.runs.reduce((best, r, i) => (near(r) < near(data.runs[best]) ? i : best), 0);
  state.frame = last(run());
  build();
  listen();
  show();
  document.documentElement.dataset.ready = "yes";
}

start();

// ---- the studio: runs that are drawn while you watch ------------------------------------------

const config = JSON.parse($("data").textContent);
const pageName = crypto.getRandomValues(new Uint32Array(2)).join("-");
const NUMBERS = ["steps", "guidance", "seed"];
let turn = 0; // each request has the next number; messages of older ones are ignored
let current = null; // the request that is answered now: { controller, r }
let chosen = config.strengths.indexOf(config.settings.strength); // on the Strength slider
let nextShow = null;

function report(text, isError = false, isRead = true) {
  $("status").setAttribute("aria-live", isRead ? "polite" : "off"); // by a screen reader
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function settingsNow(strength) {
  const settings = { prompt: $("prompt").value, strength };
  for (const name of NUMBERS) settings[name] = Number($(name).value);
  for (const name of ["sampler", "schedule"]) settings[name] = $(name).value;
  return settings;
}

// Show once for all changes before the next frame of the screen.
function showSoon() {
  nextShow ??= requestAnimationFrame(() => {
    nextShow = null;
    showAll();
  });
}

function showAll() {
  if (!data) return;
  show();
  const r = run();
  $("lines").textContent = r.lines ?? "";
  for (const button of $("saves").children) button.disabled = !r.done;
  $("pin").disabled = !beside && !r.done;
  $("pin").textContent = beside ? "Remove the run beside" : "Keep this run beside the next";
  $("all").disabled = data.runs.every((other) => other.done);
}

// ---- a run ------------------------------------------------------------------------------------

// Draw at a strength. `fresh`: the drawing or a setting has changed, so no other run belongs to it.
// Returns whether it was drawn to its end.
async function draw(index, fresh) {
  const mine = ++turn, started = performance.now();
  current?.controller.abort();
  const controller = new AbortController();
  current = { controller, r: fresh ? null : data.runs[index] };
  if (current.r) reset(current.r);
  const drawing = fresh ? drawingPng(config.side) : data.drawing;
  const settings = fresh ? settingsNow(config.strengths[index])
    : { ...data.asked, strength: config.strengths[index] };
  report("The run starts.");
  $("stop").hidden = false;
  try {
    const response = await fetch("draw", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ page: pageName, settings, drawing }),
      signal: controller.signal,
    });
    if (!response.ok) throw new Error((await response.text()).trim());
    const about = { index, fresh, drawing, settings, started };
    for await (const message of messages(response)) {
      if (mine !== turn) return false;
      await handle(message, about);
      if (mine !== turn) return false;
    }
    return Boolean(current?.r?.done);
  } catch (error) {
    if (mine !== turn) return false;
    const isLost = error instanceof TypeError;
    const text = isLost ? "The studio does not answer. Is it still running?" : error.message;
    report(error.name === "AbortError" ? "Stopped." : text, error.name !== "AbortError");
    return false;
  } finally {
    if (mine === turn) {
      current = null;
      $("stop").hidden = true;
      $("progress").value = 0;
    }
  }
}

async function* messages(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

function reset(r) {
  Object.assign(r, { images: {}, arrived: {}, reached: -1, done: false, failed: null, ledger: null,
    shares: r.of.words.map(() => []), notes: [] });
}

function startData(message, { drawing, settings }) {
  const size = message.data.size, scale = Math.min(1, 256 / Math.max(...size));
  data = { ...message.data, drawing, asked: settings };
  state.word = Math.max(0, Math.min(state.word, data.words.length - 1));
  data.imageTile = size.map((side) => Math.round(side * scale));
  data.initImage = new Image();
  data.initImage.src = `data:image/png;base64,${drawing}`;
  data.runs = config.strengths.map((strength, i) => {
    const r = { strength, of: data, steps_run: message.steps_run[i] };
    reset(r);
    return r;
  });
}

async function handle(message, about) {
  if (message.kind === "start") {
    if (about.fresh) {
      startData(message, about);
      [state.run, state.frame] = [about.index, 0];
      pause();
      document.body.classList.remove("empty");
      build();
    }
    const r = current.r = data.runs[about.index];
    r.lines = message.lines;
    return;
  }
  const r = current.r;
  const shown = () => data.runs[state.run] === r;
  switch (message.kind) {
    case "waiting":
      return report(`${steps(message.before).replace("step", "run")} before this one.`);
    case "note":
      r?.notes.push(message.text);
      return report(`Note: ${message.text}`);
    case "noised":
      r.ledger = message.ledger;
      return;
    case "frame": {
      const tiles = Object.entries(message.tiles);
      await Promise.all(tiles.map(([view, uri]) => place(r, view, message.frame, uri)));
      if (r !== current?.r) return;
      message.shares.forEach((share, i) => { r.shares[i][message.frame - 1] = share; });
      r.ledger = message.ledger;
      const isAtEnd = state.frame >= r.reached; // not looking at an earlier step
      r.reached = message.frame;
      if (shown() && isAtEnd) state.frame = r.reached;
      progress(r, message.frame, about.started);
      // A small model's first step comes at once: the page is not built up twice for it.
      if (message.frame === 0) return void setTimeout(showSoon, 100);
      return showSoon();
    }
    case "picture":
      await place(r, "image", message.frame, message.tile);
      return showSoon();
    case "end": {
      [r.done, r.name] = [true, message.run];
      const time = ((performance.now() - about.started) / 1000).toFixed(1);
      const note = r.notes.length ? ` Note: ${r.notes.at(-1)}` : "";
      report(`Drawn: ${steps(r.steps_run)} in ${time} s.${note}`);
      $("stop").hidden = true;
      return showSoon();
    }
    case "cancelled":
      return report("Stopped.");
    case "error":
      if (r) r.failed = message.text;
      report(message.text, true);
      return showSoon();
  }
}

// Put a tile into the run's sheet for its view.
async function place(r, view, frame, uri) {
  const tile = await load(uri), stepsOnly = view === "eps" || view === "words";
  if (!r.images[view]) {
    const sheet = document.createElement("canvas");
    sheet.width = tile.width * (r.steps_run + (stepsOnly ? 0 : 2));
    sheet.height = tile.height;
    r.images[view] = sheet;
    r.arrived[view] = new Set();
    if (view === "image") r.of.imageTile = [tile.width, tile.height];
  }
  const x = (stepsOnly ? frame - 1 : frame) * tile.width;
  r.images[view].getContext("2d").drawImage(tile, x, 0);
  r.arrived[view].add(frame);
}

function progress(r, frame, started) {
  const now = performance.now();
  $("progress").value = frame / last(r);
  if (frame === 0) r.encodedAt = now;
  if (frame === 1) document.documentElement.dataset.firstStep = Math.round(now - started);
  if (frame >= r.steps_run) return report(r.steps_run ? "The picture is decoded." : "Decoded.");
  const left = (((now - r.encodedAt) / frame) * (r.steps_run - frame)) / 1000;
  const time = !frame || left < 5 ? "" : left < 90 ? `, about ${Math.ceil(left)} s left`
    : `, about ${Math.ceil(left / 60)} min left`;
  report(`Step ${frame + 1} of ${r.steps_run}${time}`, false, false);
}

// The drawing or a setting has changed.
function redraw() {
  if (board.strokes === 0) return report("Draw something first.");
  const wrong = NUMBERS.find((name) => !$(name).checkValidity() || $(name).value === "");
  if (wrong) {
    const [low, high] = config.ranges[wrong];
    return report(`${wrong} must be a number from ${low} to ${high}`, true);
  }
  draw(chosen, true);
}

function stop() {
  current?.controller.abort();
}

async function drawAll() {
  const runs = data.runs;
  for (let i = 0; i < runs.length; i++) {
    if (!runs[i].done && !(await draw(i, false))) return;
    if (data.runs !== runs) return;
  }
}

// ---- comparing and keeping --------------------------------------------------------------------

function pinOrRemove() {
  beside = beside ? null : run();
  $("other-figure")?.remove();
  if (beside) {
    const figure = document.createElement("figure");
    figure.id = "other-figure";
    figure.innerHTML = '<canvas id="other" role="img" aria-label="the run beside"></canvas>' +
      '<figcaption id="other-tag"></figcaption><p id="other-settings"></p>';
    $("pair").append(figure);
  }
  document.body.classList.toggle("two", Boolean(beside));
  showAll();
}

async function save(kind) {
  const r = run(), others = data.runs.filter((other) => other.done && other !== r);
  const runs = [r, ...(kind === "page" ? others : [])].map((each) => each.name);
  try {
    const response = await fetch("save", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ kind, runs }),
    });
    if (!response.ok) throw new Error((await response.text()).trim());
    const name = response.headers.get("Content-Disposition").match(/filename="(.*?)"/)[1];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    report(`${name} is in your browser\u2019s downloads.`);
  } catch (error) {
    report(error.message, true);
  }
}

async function copyLines() {
  try {
    await navigator.clipboard.writeText($("lines").textContent);
    report("The Python lines are copied.");
  } catch {
    getSelection().selectAllChildren($("lines"));
    report("Press Ctrl+C: the lines are selected.");
  }
}

// ---- start ------------------------------------------------------------------------------------

function buildSettings() {
  for (const [name, first] of [["sampler", null], ["schedule", "default"]]) {
    const options = config[name].map((value) => new Option(value));
    $(name).replaceChildren(...(first ? [new Option(first, "")] : []), ...options);
  }
  for (const [name, value] of Object.entries(config.settings)) {
    if (name !== "strength") $(name).value = value;
    if (NUMBERS.includes(name)) [$(name).min, $(name).max] = config.ranges[name];
  }
  $("facts").textContent = `${config.model}, ${config.side} \u00d7 ${config.side} pixels. ` +
    "The page is served by this machine, and it loads nothing from the network.";
}

function listenToStudio() {
  let waiting = null; // do not start a run for every letter that is typed
  const soon = (delay) => () => {
    clearTimeout(waiting);
    waiting = setTimeout(redraw, delay);
  };
  $("prompt").addEventListener("input", soon(500));
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter") board.onLift();
  });
  for (const name of NUMBERS) $(name).addEventListener("input", soon(400));
  for (const name of ["sampler", "schedule"]) $(name).addEventListener("change", soon(0));
  board.onLift = () => {
    clearTimeout(waiting);
    redraw();
  };
  let choosing = null;
  onRun = () => {
    chosen = state.run;
    showAll();
    clearTimeout(choosing);
    choosing = setTimeout(() => { // a slider that is dragged passes many strengths
      if (!run().done && current?.r !== run()) draw(state.run, false);
    }, 80);
  };
  $("example").addEventListener("click", drawExample);
  $("dice").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    redraw();
  });
  $("stop").addEventListener("click", stop);
  $("pin").addEventListener("click", pinOrRemove);
  $("all").addEventListener("click", drawAll);
  $("copy").addEventListener("click", copyLines);
  for (const button of $("saves").querySelectorAll("[data-kind]")) {
    button.addEventListener("click", () => save(button.dataset.kind));
  }
}

setUpBoard(config.side);
buildTools();
buildSettings();
buildViews();
listen();
listenToBoard();
listenToStudio();
document.documentElement.dataset.ready = "yes";

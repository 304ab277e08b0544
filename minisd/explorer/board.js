// ---- the board: the canvas on which you draw --------------------------------------------------

const COLOURS = {
  black: "#1b1b1b", grey: "#8c8c8c", white: "#ffffff", red: "#dd2e2e", orange: "#f58a1f",
  yellow: "#fcd53f", green: "#2f9e44", blue: "#2f6fed", purple: "#8a4fd3", brown: "#7a4a24",
};
const BRUSHES = { thin: 10, medium: 24, thick: 56 }; // in 512ths of the board's width
const MOST_UNDO = 30;
const board = {
  colour: "black", brush: "medium", own: "#00a3a3", strokes: 0,
  undo: [], pointer: null, pen: null, penDown: false, last: null, onLift: () => {},
};

function boardContext() {
  return $("board").getContext("2d", { willReadFrequently: true });
}

function setUpBoard(side) {
  const canvas = $("board");
  canvas.width = canvas.height = Math.max(512, side);
  wipe();
}

function wipe() {
  const context = boardContext();
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
}

const colourNow = () => (board.colour === "own" ? board.own : COLOURS[board.colour]);
const brushNow = () => BRUSHES[board.brush] * $("board").width / 512;

// Before each change, so that Undo can take it back.
function remember() {
  const canvas = $("board");
  board.undo.push(boardContext().getImageData(0, 0, canvas.width, canvas.height));
  if (board.undo.length > MOST_UNDO) board.undo.shift();
  $("hint").hidden = true;
}

function line(from, to) {
  const context = boardContext();
  context.strokeStyle = colourNow();
  context.lineWidth = brushNow();
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...from);
  context.lineTo(...to);
  context.stroke();
}

function lifted() {
  board.strokes += 1;
  $("undo").disabled = board.undo.length === 0;
  board.onLift();
}

function undo() {
  const before = board.undo.pop();
  if (!before) return;
  boardContext().putImageData(before, 0, 0);
  lifted();
}

function clearBoard() {
  remember();
  wipe();
  lifted();
}

// The picture fills the board; what is wider or higher is cut off on both sides.
async function openPicture(file) {
  if (!file || file.size > 100e6) return report("that file is too large", true);
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    return report(`${file.name} cannot be read as a picture`, true);
  }
  remember();
  wipe();
  const side = $("board").width, scale = Math.max(side / picture.width, side / picture.height);
  const [w, h] = [picture.width * scale, picture.height * scale];
  const context = boardContext();
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (side - w) / 2, (side - h) / 2, w, h);
  lifted();
}

function drawExample() {
  remember();
  wipe();
  const context = boardContext(), k = $("board").width / 512;
  context.save();
  context.scale(k, k);
  context.lineCap = "round";
  context.fillStyle = COLOURS.red;
  for (const x of [195, 317]) {
    context.beginPath();
    context.ellipse(x, 305, 120, 138, 0, 0, 2 * Math.PI);
    context.fill();
  }
  context.strokeStyle = COLOURS.brown;
  context.lineWidth = 26;
  context.beginPath();
  context.moveTo(256, 205);
  context.quadraticCurveTo(258, 130, 292, 90);
  context.stroke();
  context.fillStyle = COLOURS.green;
  context.beginPath();
  context.ellipse(350, 128, 62, 30, -0.5, 0, 2 * Math.PI);
  context.fill();
  context.restore();
  lifted();
}

// The drawing at the model's size, as a PNG file in base64.
function drawingPng(side) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage($("board"), 0, 0, side, side);
  return canvas.toDataURL("image/png").split(",")[1];
}

// ---- mouse, finger and keys -------------------------------------------------------------------

function placeOf(event) {
  const canvas = $("board"), box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function listenToBoard() {
  const canvas = $("board");
  canvas.addEventListener("pointerdown", (event) => {
    if (board.pointer !== null || event.button !== 0) return;
    board.pointer = event.pointerId;
    canvas.setPointerCapture(event.pointerId);
    remember();
    board.last = placeOf(event);
    line(board.last, board.last);
    $("pen").hidden = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== board.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const part of events.length ? events : [event]) {
      const place = placeOf(part);
      line(board.last, place);
      board.last = place;
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      if (event.pointerId !== board.pointer) return;
      board.pointer = null;
      lifted();
    });
  }
  canvas.addEventListener("keydown", onBoardKey);
  canvas.addEventListener("blur", () => { if (board.penDown) liftPen(); $("pen").hidden = true; });
  document.addEventListener("keydown", (event) => {
    const inText = event.target.closest("input:not([type=range]), select, textarea");
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !inText) {
      event.preventDefault();
      undo();
    }
  });
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => event.preventDefault());
  }
  document.addEventListener("drop", (event) => {
    if (event.dataTransfer.files.length) openPicture(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) openPicture(event.clipboardData.files[0]);
  });
  $("file").addEventListener("change", (event) => {
    if (event.target.files.length) openPicture(event.target.files[0]);
    event.target.value = "";
  });
  $("undo").addEventListener("click", undo);
  $("clear").addEventListener("click", clearBoard);
}

function liftPen() {
  board.penDown = false;
  $("pen").classList.remove("down");
  lifted();
}

function onBoardKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const canvas = $("board"), side = canvas.width, step = (event.shiftKey ? 4 : 1) * side / 64;
  const move = {
    ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step],
  }[event.key];
  board.pen ??= [side / 2, side / 2];
  if (move) {
    const place = board.pen.map((x, i) => Math.max(0, Math.min(side, x + move[i])));
    if (board.penDown) line(board.pen, place);
    board.pen = place;
  } else if (event.key === " " || event.key === "Enter") {
    if (board.penDown) liftPen();
    else {
      remember();
      board.penDown = true;
      $("pen").classList.add("down");
      line(board.pen, board.pen);
    }
  } else if (event.key === "Delete") clearBoard();
  else return;
  event.preventDefault();
  $("pen").hidden = false;
  $("pen").style.left = `${100 * board.pen[0] / side}%`;
  $("pen").style.top = `${100 * board.pen[1] / side}%`;
}

function buildTools() {
  const radio = (parent, name, label, choose) => {
    const button = document.createElement("button");
    button.setAttribute("role", "radio");
    button.setAttribute("aria-label", label);
    button.title = label;
    button.dataset.name = name;
    button.addEventListener("click", () => { choose(); showTools(); });
    parent.append(button);
    return button;
  };
  for (const [name, colour] of Object.entries(COLOURS)) {
    const button = radio($("colours"), name, name, () => { board.colour = name; });
    button.style.setProperty("--colour", colour);
  }
  const own = document.createElement("input");
  own.type = "color";
  own.value = board.own;
  own.title = "another colour";
  own.setAttribute("aria-label", "another colour");
  own.addEventListener("input", () => {
    board.own = own.value;
    board.colour = "own";
    showTools();
  });
  $("colours").append(own);
  for (const [name, size] of Object.entries(BRUSHES)) {
    const button = radio($("brushes"), name, `${name} brush`, () => { board.brush = name; });
    button.style.setProperty("--size", `${4 + size / 3}px`);
  }
  showTools();
}

function showTools() {
  const isChosen = (button) => [board.colour, board.brush].includes(button.dataset.name);
  for (const button of document.querySelectorAll(".tools [role=radio]")) {
    button.setAttribute("aria-checked", isChosen(button));
  }
  $("colours").lastChild.classList.toggle("chosen", board.colour === "own");
  $("undo").disabled = board.undo.length === 0;
}

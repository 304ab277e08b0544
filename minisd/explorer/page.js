// The explorer: all runs are in the page.

async function start() {
  data = JSON.parse($("data").textContent);
  data.initImage = await load(data.init_image);
  await Promise.all(data.runs.flatMap((r) => {
    r.of = data;
    r.images = {}; // an Image for each view
    return Object.entries(r.sheets).map(async ([view, uri]) => {
      r.images[view] = await load(uri);
    });
  }));
  const first = data.runs[0].images.image, tiles = last(data.runs[0]) + 1;
  data.imageTile = [first.width / tiles, first.height]; // smaller than data.size for large pictures
  const distance = (r) => Math.abs(r.strength - 0.7);
  state.run = data.runs.reduce(
    (best, r, i) => (distance(r) < distance(data.runs[best]) ? i : best), 0);
  state.frame = last(run());
  $("prompt").textContent = data.prompt;
  $("facts").textContent = `${data.model}; sampler ${data.sampler}, schedule ${data.schedule}, ` +
    `guidance ${data.guidance}, seed ${data.seed}; minisd ${data.version}. ` +
    "Everything is in this file. It loads nothing from the network.";
  $("command").textContent = data.command;
  buildViews();
  build();
  listen();
  show();
  document.documentElement.dataset.ready = "yes";
}

start();

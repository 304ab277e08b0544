"""The studio's server: one page on the loopback address, drawn on by whoever has its token.

It reads no file for the page after its start. What is saved goes to the browser.
"""

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minisd.explorer.engine import Engine, Message, QueueFull, Task
from minisd.explorer.guard import MAX_CONNECTIONS, PATIENCE, App, guarded
from minisd.explorer.lines import python_lines
from minisd.explorer.live import KeptRun, Shelf, live_run
from minisd.explorer.page import FOLDER, STRENGTHS, explore_command, make_page
from minisd.explorer.settings import DRAWING, RANGES, choices, read_drawing, read_settings
from minisd.files.template import fill_template
from minisd.observe.trace_file import save_trace
from minisd.recipes import Recipe
from minisd.stable_diffusion import StableDiffusion

PARTS = {
    "studio.css": ["page.css", "studio.css"],
    "studio.js": ["viewer.js", "board.js", "studio.js"],
}


@dataclass(frozen=True)
class Studio:
    """A model, its engine, and how things of it are saved."""

    sd: StableDiffusion
    # The PNG file of a finished run, with its recipe inside; given the drawing as a PNG file.
    picture_file: Callable[[KeptRun], bytes]
    load: str = "minisd.load()"  # the Python expression that loads the model
    model: str | None = None  # as --model names it
    dtype: str = "float32"
    engine: Engine = field(default_factory=Engine)
    shelf: Shelf = field(default_factory=Shelf)

    @property
    def max_body(self) -> int:
        """In bytes: a drawing of noise, in base64, and the settings."""
        return 4 * self.sd.native_size**2 * 4 // 3 + 100_000

    def page_data(self) -> dict[str, Any]:
        is_small = self.sd.native_size < 256
        return {
            "side": self.sd.native_size,
            "model": self.sd.name,
            "strengths": STRENGTHS,
            **choices(),
            "ranges": {name: [low, high] for name, (_, low, high) in RANGES.items()},
            "settings": {
                "prompt": "red apple, noto" if is_small else "a red apple, oil painting",
                "strength": 0.7,
                "steps": 20,
                "sampler": "k_lms",
                "schedule": "",
                "guidance": 4 if is_small else 7.5,
                "seed": 1,
            },
        }

    def draw(self, values: Any, send: Callable[[Message | None], None]) -> Task:
        """The task of a page's request. Raises ValueError with one clear line, QueueFull."""
        if not isinstance(values, dict) or not isinstance(values.get("page"), str):
            raise ValueError("the request must have the entries page, settings and drawing")
        recipe = read_settings(values.get("settings"))
        drawing = read_drawing(values.get("drawing"), self.sd.native_size)

        def work(task: Task) -> None:
            live_run(self.sd, recipe, drawing, self.shelf, task, self.lines)

        task = Task(work, send, values["page"][:64])
        if before := self.engine.submit(task):
            send({"kind": "waiting", "before": before})
        return task

    def lines(self, recipe: Recipe) -> str:
        return python_lines(recipe, self.load)

    def save(self, kind: Any, names: Any) -> tuple[str, str, bytes]:
        """What is saved of finished runs: a file name, its media type, its bytes.

        Raises ValueError with one clear line.
        """
        if not isinstance(names, list) or not 0 < len(names) <= len(STRENGTHS) + 1:
            raise ValueError("the request must name the runs to save")
        runs = [self.shelf.get(name) for name in names]
        kept = runs[0]
        if kind == "picture":
            return "picture.png", "image/png", self.picture_file(kept)
        if kind == "drawing":
            return DRAWING, "image/png", kept.drawing
        if kind == "trace":
            with tempfile.TemporaryDirectory(prefix="minisd-") as folder:
                data = save_trace(kept.trace, Path(folder, "trace.safetensors")).read_bytes()
            return "trace.safetensors", "application/octet-stream", data
        if kind == "page":
            return "explorer.html", "text/html; charset=utf-8", self.explorer_page(runs)
        raise ValueError("what can be saved is picture, drawing, trace or page")

    def explorer_page(self, runs: Sequence[KeptRun]) -> bytes:
        """The explorer of these runs, which must differ in strength only."""
        by_strength = {kept.run.strength: kept for kept in runs}
        ordered = [by_strength[strength].run for strength in sorted(by_strength)]
        jobs = [run.job for run in ordered]
        settings = {repr(trace_without_strength(kept)) for kept in runs}
        if len(settings) > 1 or len({kept.drawing for kept in runs}) > 1:
            raise ValueError("the runs of an explorer page must differ in strength only")
        command = explore_command(jobs[0].recipe, sorted(by_strength), self.model, self.dtype)
        return make_page(jobs[0], iter(ordered), command).encode("utf-8", "replace")


def trace_without_strength(kept: KeptRun) -> Mapping[str, Any]:
    return {name: v for name, v in kept.trace.settings.items() if name != "strength"}


def channel() -> tuple[asyncio.Queue[Message | None], Callable[[Message | None], None]]:
    """A queue of the running loop, and the function that puts messages there from any thread."""
    loop, messages = asyncio.get_running_loop(), asyncio.Queue[Message | None]()

    def send(message: Message | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(messages.put_nowait, message)

    return messages, send


def make_app(studio: Studio, token: str, port: int, ticket: str = "") -> App:
    """The ASGI app. Needs starlette."""
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.concurrency import run_in_threadpool  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import PlainTextResponse, Response, StreamingResponse  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    page = fill_template(FOLDER / "studio.html", "minisd studio", studio.page_data()).encode()
    files = {"": (page, "text/html")}
    for name, parts in PARTS.items():
        text = "\n".join((FOLDER / part).read_text("utf-8") for part in parts)
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        files[name] = (text.encode(), kind)

    def served(name: str) -> Callable[[Request], Response]:
        content, kind = files[name]
        return lambda request: Response(content, media_type=kind)

    def read_json(request: Request) -> Any:
        try:
            return json.loads(request.state.body)
        except (ValueError, RecursionError):
            raise ValueError("the body is not JSON") from None

    async def draw(request: Request) -> Response:
        messages, send = channel()
        task = studio.draw(read_json(request), send)

        async def stream() -> AsyncIterator[bytes]:
            try:
                while (message := await messages.get()) is not None:
                    yield json.dumps(message).encode() + b"\n"
            finally:  # also where the page is closed, or asks for something else
                studio.engine.cancel(task)

        return StreamingResponse(stream(), media_type="application/x-ndjson")

    async def in_turn(work: Callable[[], Any]) -> Any:
        """The function's value, from the engine. Raises ValueError, QueueFull."""
        messages, send = channel()
        studio.engine.submit(Task(lambda task: send({"kind": "value", "value": work()}), send))
        message = await messages.get()
        if message is None or message["kind"] != "value":
            raise ValueError((message or {}).get("text", "the studio ends"))
        return message["value"]

    async def save(request: Request) -> Response:
        values = read_json(request)
        if not isinstance(values, dict):
            raise ValueError("the request must have the entries kind and runs")
        kind, names = values.get("kind"), values.get("runs")
        if kind == "page":  # may decode pictures: this is the model's work, which waits its turn
            name, media_type, data = await in_turn(lambda: studio.save(kind, names))
        else:
            name, media_type, data = await run_in_threadpool(studio.save, kind, names)
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(data, media_type=media_type, headers=headers)

    def mistake(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"{error}\n", 400)

    def busy(request: Request, error: Exception) -> Response:
        return PlainTextResponse("too many runs wait already: try again\n", 503)

    routes = [Route(f"/{token}/{name}", served(name)) for name in files]
    routes += [Route(f"/{token}/draw", draw, methods=["POST"])]
    routes += [Route(f"/{token}/save", save, methods=["POST"])]
    handlers = {ValueError: mistake, QueueFull: busy}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return guarded(app, token, port, studio.max_body, ticket)


def make_server(studio: Studio, listener: socket.socket, token: str, ticket: str = "") -> Any:
    """A uvicorn.Server: `run([listener])` serves until Ctrl-C, or until `should_exit` is set."""
    import uvicorn  # noqa: PLC0415
    from uvicorn.protocols.http.h11_impl import H11Protocol  # noqa: PLC0415

    opened: list[Any] = []  # connections, the oldest first

    class Patient(H11Protocol):
        """A connection that is closed if it sends no request, or if there are too many."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            opened.append(self)
            if len(opened) > MAX_CONNECTIONS:
                next((c for c in opened if c.is_idle), self).end()
            self.loop.call_later(PATIENCE, self.close_if_silent)

        @property
        def is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def close_if_silent(self) -> None:
            if self.cycle is None:
                self.end()

        def end(self) -> None:
            self.transport.close()
            if self in opened:  # at once: connection_lost comes later
                opened.remove(self)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self in opened:
                opened.remove(self)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            super().handle_exit(sig, frame)
            stop_tasks()

        async def shutdown(self, sockets: Any = None) -> None:
            stop_tasks()
            await super().shutdown(sockets)

    def stop_tasks() -> None:
        for task in (studio.engine.running, *studio.engine.waiting):
            if task is not None:
                task.cancelled.set()

    config = uvicorn.Config(
        make_app(studio, token, listener.getsockname()[1], ticket),
        http=Patient,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=PATIENCE,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=1 << 14,
    )
    return Server(config)

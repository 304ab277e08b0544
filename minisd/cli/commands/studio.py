"""`minisd studio`: a page on which you draw, and on which you see every step of the redrawing."""

import argparse
import hashlib
import json
import socket
import webbrowser
from collections.abc import Callable
from secrets import token_urlsafe

from minisd.cli import switches
from minisd.cli.studio import Studio as Drawer
from minisd.explorer.live import KeptRun
from minisd.explorer.server import Studio, make_server
from minisd.files import png_bytes
from minisd.proof.record import IMAGE_CHUNK, KEY, record_of
from minisd.recipes.dream import between
from minisd.recipes.metadata import texts
from minisd.stable_diffusion import StableDiffusion

HELP = "open a page in the browser: draw, and see every step of the redrawing"


def configure(parser: argparse.ArgumentParser) -> None:
    port = switches.value_type(between(0, 65535, int))
    text = "the port on 127.0.0.1 (a free one)"
    parser.add_argument("--port", metavar="N", type=port, default=0, help=text)
    text = "print the page's address, but do not open it in the browser"
    parser.add_argument("--no-open", action="store_true", help=text)
    switches.add_model_switches(
        parser, torch_only="the studio needs the network's layers, and openvino runs it as a whole"
    )


def run(args: argparse.Namespace) -> int:
    check_packages()
    with listen(args.port) as listener:  # before the model is loaded: the port may be taken
        drawer = Drawer(args)
        writer, load = picture_writer(drawer), load_line(args, drawer.sd)
        studio = Studio(drawer.sd, writer, load, args.model, args.dtype)
        token, ticket = token_urlsafe(24), "" if args.no_open else token_urlsafe(24)
        server = make_server(studio, listener, token, ticket)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(f"the studio is at {address}/{token}/\nCtrl-C ends it", flush=True)
        if ticket:
            webbrowser.open(f"{address}/{ticket}")
        try:
            server.run([listener])
        finally:
            studio.engine.stop()
    return 0


def picture_writer(drawer: Drawer) -> Callable[[KeptRun], bytes]:
    """The function that makes a PNG file of a run, with its recipe and the drawing inside."""
    drawer.hashes  # noqa: B018 (starts now, and is ready when a picture is saved)

    def picture_file(kept: KeptRun) -> bytes:
        job, image = kept.run.job, kept.run.image
        assert image is not None
        recipe, init_hash = job.recipe, hashlib.sha256(kept.drawing).hexdigest()
        chunks = texts(recipe, image.size, drawer.facts, init_hash)
        chunks |= {KEY: json.dumps(record_of(job, recipe, drawer.facts, image, init_hash))}
        return png_bytes(image, chunks, chunks={IMAGE_CHUNK: kept.drawing})

    return picture_file


def listen(port: int) -> socket.socket:
    """A socket on the loopback address; port 0 takes a free one. Raises OSError in one line."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        remedy = "choose another with --port, or leave --port out"
        raise OSError(f"port {port} cannot be used ({error.strerror}): {remedy}") from None
    return listener


def check_packages() -> None:
    """Raises ValueError if the extra is not installed."""
    try:
        import starlette  # noqa: F401, PLC0415
        import uvicorn  # noqa: F401, PLC0415
    except ImportError as error:
        install = "pip install 'minisd[studio]', or pip install starlette uvicorn"
        raise ValueError(f"minisd studio needs the package {error.name}: {install}") from None


def load_line(args: argparse.Namespace, sd: StableDiffusion) -> str:
    """The Python expression that loads the model as the switches did."""
    words = [repr(str(sd.path))] if args.model else []
    words += [f"device={args.device!r}"] if args.device else []
    words += [f"dtype=torch.{args.dtype}"] if args.dtype != "float32" else []
    words += [f"vae={str(sd.vae_path)!r}"] if sd.vae_path else []
    words += ["ema=True"] if args.ema else []
    words += [f"prediction={args.prediction!r}"] if args.prediction else []
    return f"minisd.load({', '.join(words)})"

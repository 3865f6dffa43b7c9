"""What make installs: which PyTorch, from where, into which environment; without a download.

A server on this machine stands for PyTorch's wheel index, and (but for one test) a module for pip.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

import pytest
from conftest import PATIENCE, TEMPLATE, Project

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere the usual index has the CPU build"
)

INSTALL = TEMPLATE / "tools/install.py"
AUTO = "--extra-index-url http://127.0.0.1:{port}/whl/{name}  # auto: {name}\ntorch>=2.6\n"
# Writes down what it was told, and the requirements.
PIP = """import json, pathlib, sys
words = sys.argv[1:]
if words != ["--version"]:
    text = pathlib.Path(words[words.index("-r") + 1]).read_text() if "-r" in words else ""
    with open("told.jsonl", "a") as file:
        file.write(json.dumps({"words": words, "text": text}) + "\\n")
"""


class Index:
    """A server that answers in one way; it counts who comes.

    Args:
        way: serves, fails, hangs, drips (a byte at a time, for ever) or refuses.
        wheels: A folder of wheels to serve, by the first parts of their names.
    """

    def __init__(self, way: str, wheels: Path | None = None) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *words: object) -> None: ...

            def do_GET(self) -> None:
                asked.append(self.path)
                if way == "hangs":
                    time.sleep(2 * PATIENCE)
                with contextlib.suppress(OSError):  # the other side has gone
                    while way == "drips":
                        self.wfile.write(b"H")
                        time.sleep(0.2)
                    self.answer()

            def answer(self) -> None:
                path = unquote(self.path).strip("/")
                folder, _, name = path.rpartition("/")
                found = sorted((wheels / folder).glob(f"{name}-*")) if wheels else []
                file = wheels / path if wheels else Path()
                page = "".join(f'<a href="/{folder}/{each.name}">{each.name}</a>' for each in found)
                body = file.read_bytes() if file.is_file() else page.encode()
                self.send_response(200 if way == "serves" else 500)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        if way == "refuses":
            self.server.server_close()
        else:
            Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        Thread(target=self.server.shutdown, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[..., Index]]:
    """Returns a function that starts a server."""
    running = []

    def serve(way: str, wheels: Path | None = None) -> Index:
        running.append(Index(way, wheels))
        return running[-1]

    yield serve
    for index in running:
        index.close()


class World:
    """A folder with requirements, in a world without a driver, proxies and a user's settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules = folder / "modules"
        (self.modules / "pip").mkdir(parents=True)
        (self.modules / "pip/__main__.py").write_text(PIP)
        (self.modules / "pip/__init__.py").touch()
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.put("nvidia-smi", "exit 9")
        said = re.compile("(?i)PIP_.*|.*_PROXY|ARGS|MFLAGS|MAKE.*|PY|OLD_PY|TORCH_.*|VENV")
        self.env = {name: value for name, value in os.environ.items() if not said.fullmatch(name)}
        self.env |= {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}"}
        self.env |= {"PYTHONPATH": str(self.modules), "PIP_CONFIG_FILE": os.devnull}

    def put(self, name: str, script: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    def run(self, *command: str, cwd: Path | None = None, **env: str) -> str:
        """Runs a command, which must end well; returns what it printed."""
        done = subprocess.run(
            command,
            cwd=cwd or self.folder,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def install(self, text: str, **env: str) -> str:
        """Has requirements installed; returns those that pip got."""
        file = self.folder / "requirements.txt"
        file.write_text(text)
        words = ("-r", file.name, "-c", "limits.txt")
        self.run(sys.executable, str(INSTALL), *words, cwd=self.folder, **env)
        assert file.read_text() == text
        assert not list(self.folder.glob(".requirements*")), "the copy is removed"
        (told,) = self.told()
        assert told["words"][:2] == ["install", "-r"] and told["words"][3:] == ["-c", "limits.txt"]
        return told["text"]

    def told(self, cwd: Path | None = None) -> list[dict]:
        """What pip was told since it was asked last."""
        file = (cwd or self.folder) / "told.jsonl"
        lines = file.read_text().splitlines()
        file.unlink()
        return [json.loads(line) for line in lines]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("name", ["cpu", "cu130"])
def test_without_a_driver_the_cpu_build_is_taken(
    world: World, serve: Callable[..., Index], name: str
) -> None:
    index = serve("serves")
    text = world.install(AUTO.format(port=index.port, name=name))
    assert text == f"--extra-index-url http://127.0.0.1:{index.port}/whl/cpu\ntorch>=2.6\n"
    assert index.asked == ["/whl/cpu/torch/"]


@pytest.mark.parametrize("way", ["refuses", "fails", "hangs", "drips"])
def test_an_index_that_does_not_answer_is_left_out(
    world: World, serve: Callable[..., Index], way: str
) -> None:
    """One that hangs does so for ever: that the program ends shows its deadline."""
    assert world.install(AUTO.format(port=serve(way).port, name="cpu")) == "\ntorch>=2.6\n"


def test_a_name_that_does_not_resolve(world: World) -> None:
    url = "http://index.invalid/whl/cpu"
    assert "index" not in world.install(AUTO.format(port=1, name="cpu"), TORCH_CPU_INDEX=url)


def test_a_name_whose_look_up_hangs(world: World) -> None:
    """As with a name server that does not answer, on which no time limit of a socket acts."""
    (world.modules / "sitecustomize.py").write_text(
        "import socket, time\nsocket.getaddrinfo = lambda *words, **more: time.sleep(1000)\n"
    )
    assert "index" not in world.install(AUTO.format(port=1, name="cpu"))


def test_a_proxy_that_hangs(world: World, serve: Callable[..., Index]) -> None:
    proxy = {"http_proxy": f"http://127.0.0.1:{serve('hangs').port}"}
    url = "http://index.invalid/whl/cpu"
    assert "index" not in world.install(
        AUTO.format(port=1, name="cpu"), TORCH_CPU_INDEX=url, **proxy
    )


def test_a_mirror_in_the_environment(world: World, serve: Callable[..., Index]) -> None:
    url = f"http://127.0.0.1:{serve('serves').port}/mirror"
    text = world.install(AUTO.format(port=1, name="cpu"), TORCH_CPU_INDEX=url)
    assert text == f"--extra-index-url {url}\ntorch>=2.6\n"


@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"])
def test_a_users_own_index_is_the_only_one(
    world: World, serve: Callable[..., Index], name: str
) -> None:
    index = serve("serves")
    text = world.install(AUTO.format(port=index.port, name="cpu"), **{name: "http://own.invalid"})
    assert text == "\ntorch>=2.6\n" and not index.asked


@pytest.mark.parametrize(
    "line",
    [
        "--extra-index-url http://127.0.0.1:{port}/whl/cpu",
        "--extra-index-url http://127.0.0.1:{port}/whl/cu130",
        "--extra-index-url http://127.0.0.1:{port}/whl/cu126  # auto: cpu",
        "--extra-index-url http://127.0.0.1:{port}/whl/cpu  # auto: cu130",
        "",
    ],
    ids=["cpu", "cuda", "edited to cuda", "edited to cpu", "none"],
)
def test_what_somebody_chose_is_obeyed(
    world: World, serve: Callable[..., Index], line: str
) -> None:
    index = serve("serves")
    text = f"{line.format(port=index.port)}\ntorch>=2.6\n"
    assert world.install(text) == text and not index.asked


def test_with_a_driver_the_cuda_build_stays(world: World, serve: Callable[..., Index]) -> None:
    index = serve("serves")
    world.put("nvidia-smi", "exit 0")
    text = AUTO.format(port=index.port, name="cu130")
    assert world.install(text) == text and not index.asked


def test_a_driver_that_hangs_is_none(world: World, serve: Callable[..., Index]) -> None:
    world.put("nvidia-smi", "exec sleep 1000")
    assert "whl/cpu" in world.install(AUTO.format(port=serve("serves").port, name="cu130"))


def wheel(folder: Path, name: str, version: str) -> None:
    """Writes a package without content."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")


def test_torch_and_torchvision_come_from_one_index(
    world: World, serve: Callable[..., Index], tmp_path: Path
) -> None:
    """The real pip, with two packages that have the names and versions of PyTorch's."""
    for name, version in (("torch", "2.99.0"), ("torchvision", "0.99.0")):
        wheel(tmp_path / "wheels/simple", name, version)
        wheel(tmp_path / "wheels/whl/cpu", name, f"{version}+cpu")
    port = serve("serves", tmp_path / "wheels").port
    shutil.rmtree(world.modules / "pip")
    (tmp_path / "requirements.txt").write_text(AUTO.format(port=port, name="cpu") + "torchvision\n")
    more = ["--target=found", "--no-cache-dir", f"--index-url=http://127.0.0.1:{port}/simple"]
    for url, local in (("", "+cpu"), (f"http://127.0.0.1:{serve('hangs').port}", "")):
        command = [sys.executable, str(INSTALL), "-r", "requirements.txt", *more]
        world.run(*command, TORCH_CPU_INDEX=url)
        assert {path.name for path in (tmp_path / "found").glob("*.dist-info")} == {
            f"torch-2.99.0{local}.dist-info",
            f"torchvision-0.99.0{local}.dist-info",
        }
        shutil.rmtree(tmp_path / "found")


def bare_environment(folder: Path) -> Path:
    """An environment without pip, as uv makes them, with a package in it; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "mine.py").touch()
    return folder / "bin/python"


@pytest.mark.parametrize("which", ["template", "project"])
def test_an_environment_without_pip_gets_it(
    bake: Callable[..., Project],
    world: World,
    template: Path,
    tmp_path: Path,
    which: str,
    full: bool,
) -> None:
    """That of uv, or of a `python3 -m venv` that failed half way; what is in it stays."""
    if not full and which == "template":
        pytest.skip("tools/install.py does it for both; `make stress` has it")
    folder = bake(accelerator="cpu").path if which == "project" else tmp_path / "template"
    if which == "template":
        shutil.copytree(template, folder)
    python = bare_environment(folder / ".venv")
    shutil.rmtree(world.modules / "pip")
    wheel(tmp_path / "wheels", "cookiecutter", "2.99")
    with zipfile.ZipFile(next((tmp_path / "wheels").iterdir())) as file:
        file.extractall(next(folder.glob(".venv/lib/python*/site-packages")))
    for path in folder.glob("**/requirements.txt"):
        path.write_text("cookiecutter\n" if path.parent == folder else "")
    stamp = ".venv/.installed" if which == "project" else ".venv/.installed-demo"
    said = world.run("make", stamp, cwd=folder)
    assert ".venv: adding pip; what is installed stays" in said and (folder / stamp).exists()
    world.run(str(python), "-c", "import pip, mine")


def test_an_environment_that_cannot_get_pip(world: World, tmp_path: Path) -> None:
    """Debian without python3-venv: Python there has no ensurepip either."""
    python = bare_environment(tmp_path / "half")
    shutil.rmtree(world.modules / "pip")
    (world.modules / "ensurepip.py").write_text("raise SystemExit(1)")
    command = [str(python), str(INSTALL), "-r", "requirements.txt"]
    done = subprocess.run(command, env=world.env, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{tmp_path / 'half'}: has no pip; delete it")


AWKWARD = "my templates, $HOME (1) 'a' \"b\" & c; #d"


def wrapped_environment(folder: Path) -> None:
    """An environment whose Python is the one of the tests, and finds the module for pip."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "bin/python").chmod(0o755)


@pytest.fixture
def clone(world: World, template: Path, tmp_path: Path) -> Path:
    """The template in a folder whose name has much that a shell acts on; its programs only talk."""
    folder = shutil.copytree(template, tmp_path / AWKWARD)
    wrapped_environment(folder / ".venv")
    inner = folder / TEMPLATE.name
    for path in (inner / "train.py", inner / "tasks/image-classification/test.py"):
        path.write_text("import sys\nprint('ran', sys.argv)\n")
    return folder


def names(told: dict) -> set[str]:
    return set(re.findall(r"(?m)^([\w-]+)[>=]", told["text"]))


def test_the_demo_installs_what_it_needs(world: World, clone: Path) -> None:
    """And runs, whatever the name of the folder is."""
    offline = {"TORCH_CPU_INDEX": "http://127.0.0.1:1"}
    said = world.run("make", "demo", cwd=clone, **offline)
    assert "ran ['train.py', '--run-dir', 'runs/demo']" in said and "ran ['test.py'" in said
    (told,) = world.told(clone)
    demo = Project(clone / "demo/my_vision_project")
    needed = re.findall(r'(?m)^ {4}"([\w-]+)>=', demo.read("pyproject.toml"))
    assert names(told) == {*needed[: needed.index("tqdm") + 1], "cookiecutter"}
    assert "http" not in told["text"]
    assert not [path for path in clone.iterdir() if path.name.startswith(".requirements")]
    world.run("make", "demo", cwd=clone, **offline)
    assert not (clone / "told.jsonl").exists(), "once is enough"


def test_what_tests_need_is_installed_by_make_test(world: World, clone: Path) -> None:
    """Before or after the demo, and again when the requirements have changed."""
    demo, tests = ".venv/.installed-demo", ".venv/.installed"
    dry = world.run("make", "-n", "test", cwd=clone)
    assert dry.index(f"touch {demo}\n") < dry.index(f"touch {tests}\n") < dry.index("-m pytest")
    world.run("make", tests, cwd=clone)
    first, second = world.told(clone)
    assert "pytest" not in names(first) and "cookiecutter" in names(first)
    assert second["words"] == ["install", "-r", "requirements.txt"]
    world.run("make", tests, demo, cwd=clone)
    assert not (clone / "told.jsonl").exists()
    later = time.time() + 60
    os.utime(clone / TEMPLATE.name / "requirements.txt", (later, later))
    world.run("make", tests, cwd=clone)
    assert len(world.told(clone)) == 2


def test_an_interrupted_installation_goes_on(world: World, clone: Path) -> None:
    """pip that ends badly leaves no mark; the next call has it go on."""
    (world.modules / "pip/__init__.py").write_text(
        "import sys\nsys.exit('--version' not in sys.argv)"
    )
    done = subprocess.run(
        ["make", ".venv/.installed"], cwd=clone, env=world.env, capture_output=True
    )
    assert done.returncode == 2 and not list(clone.glob(".venv/.installed*"))
    (world.modules / "pip/__init__.py").write_text("")
    world.run("make", ".venv/.installed", cwd=clone)
    assert len(world.told(clone)) == 2


def test_a_project_in_an_awkward_folder(
    bake: Callable[..., Project], world: World, tmp_path: Path
) -> None:
    project = Project(shutil.copytree(bake(accelerator="cpu").path, tmp_path / AWKWARD))
    wrapped_environment(project.path / ".venv")
    (project.path / "train.py").write_text("import sys\nprint('ran', sys.argv)\n")
    said = world.run("make", "train", "ARGS=--epochs 3", cwd=project.path)
    assert "ran ['train.py', '--epochs', '3']" in said
    world.run("make", "test", "ARGS=--collect-only tests/test_model.py", cwd=project.path)
    (told,) = world.told(project.path)
    assert told["words"] == ["install", "-r", "requirements.txt"], "what was chosen is obeyed"


def test_the_checks_of_a_change_in_an_awkward_folder(world: World, clone: Path) -> None:
    world.put("make", 'pwd; echo "made $*"; echo "== 1 passed =="')
    said = world.run(str(clone / ".ci/run"))
    assert [line[5:] for line in said.splitlines() if line.startswith("made")] == [
        *("test", "demo", "stress")
    ]
    assert said.count(str(clone)) == 3 and said.endswith("tests: == 1 passed ==\n")

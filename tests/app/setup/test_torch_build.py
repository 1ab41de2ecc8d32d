"""The build of torch as a function of the machine, and the index it comes from."""

import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from app.setup import torch_build
from app.setup.installer import SetupError
from app.setup.torch_build import MachineFacts, TorchSource


def machine(system: str = "Linux", *gpus: str) -> MachineFacts:
    return MachineFacts(system=system, nvidia="nvidia" in gpus, amd="amd" in gpus)


@pytest.mark.parametrize(
    ("wanted_build", "facts", "build"),
    [
        ("auto", machine("Linux"), "cpu"),
        ("auto", machine("Linux", "nvidia"), "cuda"),
        ("auto", machine("Linux", "amd"), "rocm"),
        ("auto", machine("Linux", "nvidia", "amd"), "cuda"),
        ("auto", machine("Windows"), "cpu"),
        ("auto", machine("Windows", "nvidia"), "cuda"),
        ("auto", machine("Darwin"), "metal"),
        ("cpu", machine("Darwin"), "metal"),
        ("cpu", machine("Linux", "nvidia"), "cpu"),
        ("cuda", machine("Linux"), "cuda"),
        ("rocm", machine("Linux"), "rocm"),
    ],
)
def test_the_option_and_the_machine_decide_the_build(wanted_build, facts, build):
    assert torch_build.choose_build(wanted_build, facts) == build
    assert torch_build.SPACE_GB[build] >= 3


@pytest.mark.parametrize(
    ("wanted_build", "system"), [("cuda", "Darwin"), ("rocm", "Darwin"), ("rocm", "Windows")]
)
def test_build_that_a_system_lacks_is_refused(wanted_build, system):
    with pytest.raises(SetupError, match=rf"{wanted_build} build of torch .*: "):
        torch_build.choose_build(wanted_build, machine(system))


def test_probe_finds_a_driver_by_its_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvidia-smi").touch()
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert torch_build.probe_machine().nvidia


@pytest.mark.parametrize(
    ("argv", "wanted_build", "rest"),
    [
        ([], None, []),
        (["--torch", "cpu"], "cpu", []),
        (
            ["generate", "a", "--torch=rocm", "--count", "4"],
            "rocm",
            ["generate", "a", "--count", "4"],
        ),
        (["--torch", "cpu", "test", "--torch", "auto"], "auto", ["test"]),
        (["test", "--", "--torch", "x"], None, ["test", "--", "--torch", "x"]),
        (["--torch-like"], None, ["--torch-like"]),
    ],
)
def test_the_option_is_taken_off_the_command_line(argv, wanted_build, rest):
    assert torch_build.take_option(argv) == (wanted_build, rest)


@pytest.mark.parametrize(
    "argv", [["--torch"], ["--torch="], ["--torch", "CPU"], ["--torch", "--json"]]
)
def test_option_must_be_one_of_the_known(argv):
    with pytest.raises(SetupError, match="--torch takes auto, cpu, cuda or rocm"):
        torch_build.take_option(argv)


@pytest.mark.parametrize(
    ("version", "system", "build"),
    [
        ("2.15.0+cpu", "Linux", "cpu"),
        ("2.15.0+cu132", "Windows", "cuda"),
        ("2.15.0+rocm7.1", "Linux", "rocm"),
        ("2.15.0", "Linux", "cuda"),
        ("2.15.0", "Windows", "cpu"),
        ("2.15.0", "Darwin", "metal"),
        ("2.15.0+git1a2b", "Linux", "cuda"),
    ],
)
def test_installed_version_tells_the_build(version, system, build):
    assert torch_build.build_of(version, machine(system)) == build


def test_only_what_belongs_to_one_build_goes_with_torch():
    names = [
        "torch",
        "torchvision",
        "triton",
        "pytorch-triton-rocm",
        "triton_rocm",
        "nvidia-cublas-cu13",
    ]
    names += ["cuda_bindings", "numpy", "torchsde", "tritonclient"]
    assert torch_build.torch_packages(names) == [
        "cuda-bindings",
        "nvidia-cublas-cu13",
        "pytorch-triton-rocm",
        "torch",
        "triton",
        "triton-rocm",
    ]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind an index on this machine, to which find_source turns."""
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv(torch_build.INDEX_VARIABLE, f"{url}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield tmp_path
        server.shutdown()
        thread.join()


def publish(index: Path, folder: str, *wheels: str) -> None:
    (index / folder / "torch").mkdir(parents=True)
    for wheel in wheels:
        (index / folder / "torch" / wheel).touch()


def test_build_of_the_registry_is_taken_from_there_without_asking(monkeypatch):
    monkeypatch.setenv(torch_build.INDEX_VARIABLE, "http://127.0.0.1:9")
    assert torch_build.find_source("cuda", "2.15.0", machine("Linux")) == TorchSource(build="cuda")
    assert torch_build.find_source("metal", "2.15.0", machine("Darwin")) == TorchSource(
        build="metal"
    )


def test_newest_folder_that_has_the_pinned_version_is_taken(index):
    publish(index, "cpu", "torch-2.15.0+cpu-cp311-cp311-linux_x86_64.whl")
    publish(index, "rocm7.3", "torch-2.14.0+rocm7.3-cp311-cp311-linux_x86_64.whl")
    publish(index, "rocm7.2", "torch-2.15.0+rocm7.2-cp311-cp311-linux_x86_64.whl")
    cpu = torch_build.find_source("cpu", "2.15.0", machine())
    assert (cpu.build, cpu.note) == ("cpu", None)
    assert cpu.index is not None
    assert cpu.index.endswith("/cpu")
    rocm = torch_build.find_source("rocm", "2.15.0", machine())
    assert rocm.index is not None
    assert rocm.index.endswith("/rocm7.2")


def test_index_without_the_version_leads_to_the_registry(index):
    publish(index, "cpu", "torch-12.15.0+cpu-cp311-cp311-linux_x86_64.whl", "torch-2.15.01+cpu.whl")
    source = torch_build.find_source("cpu", "2.15.0", machine())
    assert (source.build, source.index) == ("cuda", None)
    assert source.note is not None
    assert "has no cpu build of torch 2.15.0" in source.note
    assert "a larger download that runs on the CPU as well" in source.note


def test_index_that_refuses_leads_to_the_registry(monkeypatch):
    monkeypatch.setenv(torch_build.INDEX_VARIABLE, "http://127.0.0.1:9/whl")
    source = torch_build.find_source("cuda", "2.15.0", machine("Windows", "nvidia"))
    assert (source.build, source.index) == ("cpu", None)
    assert source.note is not None
    assert "http://127.0.0.1:9/whl cannot be reached from here" in source.note
    assert "leaves this machine's GPU unused" in source.note


def test_index_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(torch_build, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(
            torch_build.INDEX_VARIABLE, f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        source = torch_build.find_source("cpu", "2.15.0", machine())
    assert source.note is not None
    assert "cannot be reached" in source.note


@pytest.mark.parametrize("address", ["no address at all", "http://[::1", "http://127.0.0.1:9/a b"])
def test_index_variable_that_is_no_address_leads_to_the_registry(monkeypatch, address):
    monkeypatch.setenv(torch_build.INDEX_VARIABLE, address)
    assert torch_build.find_source("cpu", "2.15.0", machine()).index is None


def tool(folder: Path, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    """An nvidia-smi that prints `says`."""
    script = folder / "bin" / "nvidia-smi"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{says}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")


@pytest.mark.skipif(os.name != "posix", reason="the tool is a shell script here")
@pytest.mark.parametrize(
    ("says", "folder"),
    [
        ("echo 6.1", "cu126"),
        ("echo 7.0", "cu126"),
        ("echo 6.1; echo 8.6", None),
        ("echo 12.0", None),
        ("echo '[N/A]'", None),
        ("exit 9", None),
    ],
)
def test_old_cards_get_the_build_that_has_their_kernels(index, monkeypatch, says, folder):
    tool(index, monkeypatch, says)
    publish(index, "cu126", "torch-2.15.0+cu126-cp311-cp311-linux_x86_64.whl")
    source = torch_build.find_source("cuda", "2.15.0", machine("Linux", "nvidia"))
    assert (source.build, source.note) == ("cuda", None)
    assert (source.index or "").endswith(folder or "")
    assert (source.index is None) is (folder is None)


@pytest.mark.skipif(os.name != "posix", reason="the tool is a shell script here")
def test_an_old_card_without_a_build_is_told_so(index, monkeypatch):
    tool(index, monkeypatch, "echo 5.2")
    publish(index, "cu126", "torch-2.14.0+cu126-cp311-cp311-linux_x86_64.whl")
    source = torch_build.find_source("cuda", "2.15.0", machine("Linux", "nvidia"))
    assert (source.build, source.index) == ("cuda", None)
    assert source.note is not None
    assert "for GPUs before compute capability 7.5" in source.note
    assert "leaves this machine's GPU unused" in source.note

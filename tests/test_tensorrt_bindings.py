"""Every class, flag, method and signature of TensorRT that we use, against NVIDIA's Python bindings, 10 and 11.

The bindings are a small wheel; the native libraries that they load are gigabytes and need a GPU. The bindings
import all the same when a library of that name gives the nine C functions that they link to: here a stub, compiled
in a second, whose functions give nothing. That shows names, signatures, and what happens where TensorRT gives
nothing. It does not show that an engine builds or runs.

What is checked is what the simulation saw used in a whole build and run. Needs a C compiler, and the bindings from
the package index: 1.3 MB each, once, kept in HEADWAY_CACHE (default ~/.cache/headway).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import pytest

import sdk.tensorrt_api as api
from device_agent.runtime.tensorrt import TensorRtRuntime
from sdk.engine import EngineCache, prepare_engine
from sdk.errors import EngineError
from sdk.tensorrt_api import Library, TensorRt
from tests.tensorrt_sim import SimCuda, SimTensorRt, Use, Watched
from tests.tiny import FEATURE_SIZE, SIDE, tiny_bundle

ROOT = Path(__file__).parents[1]
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")
"""The one of JetPack 6.1 and 6.2, and the newest of each major version when this was written."""
CACHE = Path(os.environ.get("HEADWAY_CACHE", Path.home() / ".cache" / "headway")) / "tensorrt-bindings"
STUB = """
#include <stddef.h>
void *createInferBuilder_INTERNAL(void *logger, int version) { return NULL; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int version) { return NULL; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return NULL; }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return NULL; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }
void *getBuilderPluginRegistry(int capability) { return NULL; }
void *getPluginRegistry(void) { return NULL; }
int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *logger, const char *space) { return 1; }
"""
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")


def bindings(version: str) -> Path:
    """Return a folder with the bindings of a version, fetched once; skip where they cannot be had."""
    if sys.platform != "linux":
        pytest.skip("NVIDIA's bindings of TensorRT are for Linux")
    folder = CACHE / f"{version}-cp{sys.version_info[0]}{sys.version_info[1]}"
    if not folder.is_dir():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=0",
            "--timeout=10", "--target", str(draft), f"tensorrt_cu12_bindings=={version}",
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            draft.rename(folder)
        except (subprocess.SubprocessError, OSError) as error:
            if not folder.is_dir():  # another worker may have been quicker
                pytest.skip(f"tensorrt_cu12_bindings {version} cannot be had: {type(error).__name__}")
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


@pytest.fixture(scope="module", params=VERSIONS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which `import tensorrt_bindings` gives the real bindings of a version over the stub."""
    version = str(request.param)
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stub of TensorRT's libraries")
    folder, stub = bindings(version), tmp_path_factory.mktemp("stub")
    source = stub / "stub.c"
    source.write_text(STUB)
    for name in LIBRARIES:
        library = stub / f"lib{name}.so.{version.partition('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(stub),
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "EXPECTED_VERSION": version,
    }


@pytest.fixture(scope="module")
def uses(tmp_path_factory: pytest.TempPathFactory) -> set[Use]:
    """Every use of TensorRT in a build that fails, one that succeeds, and runs of two sizes."""
    found: set[Use] = set()
    folder = tmp_path_factory.mktemp("uses")
    bundle, cache = tiny_bundle(folder / "bundle", per_class=8), EngineCache(folder / "engines")
    sim = SimTensorRt()
    library = Library.of(cast(TensorRt, Watched(sim, found)), SimCuda())
    sim.refuses = "no"
    with pytest.raises(EngineError):
        prepare_engine(library, cache, bundle)
    sim.refuses = ""
    prepared = prepare_engine(library, cache, bundle)
    runtime = TensorRtRuntime(library, prepared, FEATURE_SIZE)
    assert runtime.features(np.zeros((20, 3, SIDE, SIDE), np.float32)).shape == (20, FEATURE_SIZE)
    return found


def run(code: str, environment: dict[str, str], given: str = "") -> str:
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, input=given, capture_output=True, text=True, timeout=120,
        check=False, cwd=ROOT,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:] + ended.stdout[-3000:]
    return ended.stdout


def test_the_interfaces_have_no_member_that_nobody_uses(uses: set[Use]) -> None:
    """And so nothing that is used escapes the check below."""
    ours = {
        member
        for protocol in (
            api.Profile, api.TimingCache, api.BuilderConfig, api.Tensor, api.Network, api.ParserError, api.Parser,
            api.Builder, api.Context, api.Engine, api.Deserializer, api.TensorRt,
        )
        for member in (*vars(protocol), *protocol.__annotations__)
        if not member.startswith("_")
    }  # fmt: skip
    used = {use.member for use in uses} | {use.owner for use in uses if use.kind == "name"}
    assert ours - used - {"Severity"} == set()
    assert {use.member for use in uses if use.owner == ""} - ours == {"__version__"}


CHECK = r'''
import json, os, re, sys
import tensorrt_bindings as trt

assert trt.__version__ == os.environ["EXPECTED_VERSION"], trt.__version__
TYPES = {
    "int": r"\b(int|SupportsInt)\b", "str": r"\bstr\b", "bytes": r"\b(buffer|Buffer|bytes)\b", "bool": r"\bbool\b",
    "tuple": r"\b(Dims|tuple)\b", "NoneType": r".", "IHostMemory": r"\bIHostMemory\b",
}
RETURNS = {"ParserError": r"IParserError", "tuple": r"\bDims\b", "list": r"[Ll]ist\["}

def split(text):
    """Cut at the commas that stand in no bracket."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += (letter in "([<{") - (letter in ")]>}")
        if letter == "," and depth == 0:
            parts.append(part.strip()); part = ""
        else:
            part += letter
    return parts + [part.strip()] if part.strip() else parts

def overloads(function, name):
    """Return (parameter types, how many have no default, return type) of each signature in the docstring."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(rf"^(?:\d+\. )?{name}\((.*)\) -> (.*)$", line.strip())
        if match and "*args" not in match[1]:
            parameters = split(match[1])
            types = [p.partition(":")[2].partition(" = ")[0].strip() for p in parameters]
            found.append((types, sum(" = " not in p for p in parameters), match[2]))
    return found

def fits(kind, type_):
    return re.search(TYPES.get(kind, rf"\b{kind}\b"), type_) is not None

def check(use):
    owner, member, kind = use["owner"], use["member"], use["kind"]
    where = trt if owner == "" else getattr(trt, owner)
    if kind == "name":
        assert member in getattr(trt, owner).__members__
        return
    found = getattr(where, member)
    if kind == "set":
        assert isinstance(found, property) and found.fset is not None
        return
    if kind == "get":
        assert isinstance(found, property) if owner else found is not None
        return
    name = "__init__" if isinstance(found, type) else member
    given = [owner or member, *use["arguments"]]
    known = overloads(getattr(found, name) if isinstance(found, type) else found, name)
    assert known, "no signature in " + repr(found.__doc__)
    for types, least, returns in known:
        if least <= len(given) <= len(types) and all(map(fits, given, types)):
            gives = use["returns"]
            wanted = RETURNS.get(gives, rf"\b{gives}\b")
            if name == "__init__" or gives == "NoneType" or re.search(wanted, returns):
                return
    raise AssertionError(f"{given} -> {use['returns']} fits none of {known}")

wrong = []
for use in json.load(sys.stdin):
    try:
        check(use)
    except (AssertionError, AttributeError) as error:
        wrong.append(f"{use['owner']}.{use['member']}: {type(error).__name__} {error}")
print(json.dumps(wrong))
'''


def test_everything_used_is_there_with_that_signature(uses: set[Use], real: dict[str, str]) -> None:
    given = json.dumps([asdict(use) for use in sorted(uses, key=str)])
    assert len(uses) > 40
    assert json.loads(run(CHECK, real, given)) == []


def test_the_check_finds_what_is_wrong(real: dict[str, str]) -> None:
    """The control: flags that TensorRT 11 took away, a method nobody has, wrong counts and types of arguments."""
    planted = [
        Use("BuilderFlag", "NEVER", "name"),
        Use("Builder", "build_cuda_engine", "call", ("INetworkDefinition",)),
        Use("Builder", "create_network", "call", ("str",), "INetworkDefinition"),
        Use("IExecutionContext", "execute_async_v3", "call", (), "bool"),
        Use("IExecutionContext", "execute_async_v3", "call", ("int",), "int"),
        Use("IBuilderConfig", "set_timing_cache", "call", ("ITimingCache", "bool", "bool"), "bool"),
        Use("ICudaEngine", "num_io_tensors", "set", ("int",)),
        Use("", "NoSuchClass", "call"),
    ]
    if real["EXPECTED_VERSION"].startswith("11"):
        planted += [Use("BuilderFlag", "FP16", "name"), Use("BuilderFlag", "INT8", "name")]
    assert len(json.loads(run(CHECK, real, json.dumps([asdict(use) for use in planted])))) == len(planted)


DRIVE = r"""
import threading
import tensorrt_bindings as trt
from pathlib import Path
from sdk.engine import EngineKey, build_engine, _Watch
from sdk.errors import EngineError, InferenceFailed
from sdk.tensorrt_api import Library
from tests.tensorrt_sim import SimCuda

library = Library.of(trt, SimCuda())

# Our logger is one of theirs, and keeps what is grave.
assert isinstance(library.logger, trt.ILogger)
library.logger.log(trt.ILogger.Severity.WARNING, "harmless")
library.logger.log(trt.ILogger.Severity.ERROR, "grave\nwords")
assert library.messages.last() == "grave words"

# So is our progress monitor, which ends a build when asked to.
seen, stop = [], threading.Event()
watch = _Watch(lambda phase, share: seen.append((phase, share)), stop)
monitor = watch.monitor(trt)
assert isinstance(monitor, trt.IProgressMonitor)
monitor.phase_start("outer", None, 2)
assert monitor.step_complete("outer", 0) is True
stop.set()
assert monitor.step_complete("outer", 1) is False
monitor.phase_finish("outer")
assert seen == [("outer", 0.0), ("outer", 0.5), ("outer", 1.0)], seen

# The flag's place is another in each version; the network's flags come out right all the same.
flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
assert flag == (2 if trt.__version__.startswith("10") else 1)

# Tuples become Dims, and Dims tuples.
assert tuple(trt.Dims((16, 3, 224, 224))) == (16, 3, 224, 224)

# Where the native library gives nothing, as it does without a GPU, we say so.
one = (1, 3, 8, 8)
key = EngineKey(onnx_sha256="0" * 64, precision="fp32", tensorrt=library.version, gpu="Orin",
                compute_capability="8.7", shapes=(one, one, one))
try:
    build_engine(library, b"", key, b"", lambda *_: None, threading.Event())
except EngineError as error:
    assert "cannot start a build" in str(error), error
else:
    raise AssertionError("it built")
from device_agent.runtime.tensorrt import TensorRtRuntime
from sdk.engine import PreparedEngine
try:
    TensorRtRuntime(library, PreparedEngine(key, b"plan", kept=True), 8)
except InferenceFailed as error:
    assert "does not start" in str(error), error
else:
    raise AssertionError("it ran")
print("driven")
"""


def test_our_logger_and_monitor_are_theirs_and_nothing_is_told_as_nothing(real: dict[str, str]) -> None:
    assert run(DRIVE, real) == "driven\n"


def test_bindings_without_their_libraries_are_told_as_that(real: dict[str, str], tmp_path: Path) -> None:
    """As after `pip install` of the bindings alone, or where apt removed the libraries."""
    (tmp_path / "tensorrt.py").write_text(
        "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
    )
    path = os.pathsep.join([str(tmp_path), real["PYTHONPATH"]])
    code = (
        "from sdk.tensorrt_api import open_library\nfrom sdk.errors import TensorRtMissing\n"
        "try:\n    open_library()\nexcept TensorRtMissing as error:\n    print(error)\n"
    )
    told = run(code, {**real, "PYTHONPATH": path, "LD_LIBRARY_PATH": ""})
    assert told.startswith("TensorRT does not load: lib")
    assert "cannot open shared object file" in told

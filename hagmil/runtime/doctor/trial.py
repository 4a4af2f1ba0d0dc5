"""Try a provider: run a tiny graph that ships with the package, and compare its result.

1. Open the session that ``hagmil infer`` would open: ONNX Runtime, or a TensorRT engine built here for this GPU.
2. Run it on arrays of the host, and where the session takes them, on arrays of the GPU.
3. Compare the results with those that the definition of the operators gives.

The graph is made by scripts/make_probe.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from hagmil._models import FrozenModel
from hagmil._nvidia.libraries import load_libraries
from hagmil._tensorrt.builder import BuildRequest, build_engine
from hagmil._tensorrt.flavour import Flavour, choose_flavour, device_capability, installed_flavours
from hagmil._tensorrt.profiles import Range, backbone_profile
from hagmil.errors import EnvironmentLacks, HagmilError
from hagmil.runtime.sessions import Provider, Session, open_session
from hagmil.selftest import SelfTestCase, read_selftest
from hagmil.spec import BACKBONE_INPUTS, BACKBONE_OUTPUTS

PROBE = Path(__file__).with_name("probe.onnx")
PROBE_CASE = Path(__file__).with_name("probe.npz")
PROBE_PX = 16
"""Side of the probe's patches."""

TrialState = Literal["ok", "failed", "missing"]
_NOT_INSTALLED = frozenset({"package_missing", "provider_missing"})


class Trial(FrozenModel):
    """The outcome for one provider."""

    provider: Provider
    state: TrialState = Field(description="ok: the result is right; missing: not installed; failed: anything else")
    runs_on: str | None = Field(description="the provider as its library names it; null if it did not start")
    code: str | None = Field(description="code of the error, see docs/errors.md; null if ok")
    detail: str = Field(description="what is wrong and what to do; if ok, what was tried")


def try_provider(provider: Provider) -> tuple[Trial, ...]:
    """Try one provider; with two flavours of TensorRT, each of them.

    Args:
        provider: ``cpu``, ``cuda`` or ``tensorrt``.

    Returns:
        At least one outcome. Failures are outcomes, not errors.
    """
    if provider != "tensorrt":
        return (_outcome(provider, None),)
    flavours = installed_flavour_names()
    return tuple(_outcome(provider, flavour) for flavour in flavours or (None,))


def installed_flavour_names() -> tuple[str, ...]:
    """The names of the installed flavours of TensorRT, of those that can be imported."""
    try:
        return tuple(flavour.name for flavour in installed_flavours())
    except EnvironmentLacks:  # found again, with its message, when no flavour is named
        return ()


def _outcome(provider: Provider, flavour: str | None) -> Trial:
    try:
        runs_on = _run(provider, flavour)
    except HagmilError as error:
        state: TrialState = "missing" if error.code in _NOT_INSTALLED else "failed"
        return Trial(provider=provider, state=state, runs_on=None, code=error.code, detail=error.message)
    except Exception as error:  # noqa: BLE001 - whatever a driver or library raises is a finding
        detail = f"{type(error).__name__}: {error}"
        return Trial(provider=provider, state="failed", runs_on=None, code="internal", detail=detail)
    detail = "the test graph gives the right result"
    return Trial(provider=provider, state="ok", runs_on=runs_on, code=None, detail=detail)


def _run(provider: Provider, flavour: str | None) -> str:
    """Steps 1 to 3; returns the provider as its library names it."""
    (case,) = read_selftest(PROBE_CASE)
    if provider == "tensorrt":
        session = _engine_session(choose_flavour(flavour))
    else:
        session = open_session(PROBE, provider=provider, threads=1)
    for outputs in _results(session, case):
        _compare(case, outputs, session.provider)
    return session.provider


def _engine_session(flavour: Flavour) -> Session:
    from hagmil.runtime.sessions.trt import TensorRtSession

    load_libraries(flavour.name)
    request = BuildRequest(PROBE, (backbone_profile(PROBE_PX, Range(1, 2, 2)),), (device_capability(),))
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "probe.engine"
        engine.write_bytes(build_engine(flavour, request).data)
        return TensorRtSession(engine, flavour, BACKBONE_INPUTS, BACKBONE_OUTPUTS)


def _results(session: Session, case: SelfTestCase) -> Iterator[dict[str, Any]]:
    """Step 2."""
    yield session.run(dict(case.inputs))
    if session.on_device:
        from hagmil.runtime.inference.device import device_of, to_host  # imports packages that may be missing

        device = device_of(session)
        outputs = session.run({name: device.to_device(array) for name, array in case.inputs.items()})
        yield {name: to_host(array) for name, array in outputs.items()}


def _compare(case: SelfTestCase, outputs: dict[str, Any], runs_on: str) -> None:
    """Step 3."""
    for name, expected in case.outputs.items():
        allowed = case.absolute + case.relative * float(np.abs(expected).max())
        given = outputs[name]
        if given.shape != expected.shape or not float(np.abs(given - expected).max()) <= allowed:
            raise EnvironmentLacks(
                f"{runs_on} gives wrong numbers for the test graph; do not use it, and report this with the versions",
                code="provider_wrong",
            )

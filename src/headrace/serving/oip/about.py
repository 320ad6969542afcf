"""What the server says about itself and its line, the same over REST and gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from headrace.declaration import LineSpec
from headrace.errors import EnvironmentFault, InputError
from headrace.serving.oip.tensors import DATATYPES, output_types
from headrace.serving.payload import UnknownModel
from headrace.serving.pinned import Pinned
from headrace.serving.swap import Follower

SERVER: Final[dict[str, Any]] = {
    "name": "headrace",
    "version": version("headrace"),
    "extensions": ["binary_tensor_data"],
}


@dataclass(frozen=True)
class About:
    """A line as a model of the protocol: whether it is ready, what it takes and gives."""

    spec: LineSpec
    models: Follower
    pinned: Pinned

    def check(self, line: str, pin: str | None) -> None:
        """Raise `UnknownModel` for another line, or a version that cannot be asked for."""
        if line != self.spec.line:
            raise UnknownModel(f"this server serves {self.spec.line!r}, not {line[:80]!a}")
        if pin is None:
            return
        try:
            self.pinned.check(pin)
        except InputError as problem:
            raise UnknownModel(str(problem)) from None

    def ready_version(self, line: str, pin: str | None = None) -> str:
        """The version that answers. Raises `EnvironmentFault` while none can."""
        self.check(line, pin)
        return pin or self.models.current().version.version

    def is_ready(self, line: str, pin: str | None = None) -> bool:
        """Whether a request would be answered."""
        try:
            self.ready_version(line, pin)
        except EnvironmentFault:
            return False
        return True

    def model(self, line: str, pin: str | None = None) -> dict[str, Any]:
        """Name, versions (the champion, or the one asked for), platform, inputs and outputs."""
        self.check(line, pin)
        served = [self.models.current().version.version] if self.models.ready else []
        return {
            "name": self.spec.line,
            "versions": served if pin is None else [pin],
            "platform": f"headrace_{self.spec.model.family}",
            "inputs": [
                {"name": name, "datatype": DATATYPES[kind], "shape": [-1]}
                for name, kind in self.spec.columns.items()
            ],
            "outputs": [
                {"name": name, "datatype": datatype, "shape": [-1]}
                for name, datatype in output_types(self.spec).items()
            ],
        }

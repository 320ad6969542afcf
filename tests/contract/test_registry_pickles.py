"""What a registry holds is data: no bytes of it are ever unpickled."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import dill
import pyarrow as pa
import pytest
from feast.protos.feast.core.OnDemandFeatureView_pb2 import OnDemandFeatureView
from feast.protos.feast.core.Registry_pb2 import Registry

from headrace.errors import IntegrityError
from headrace.settings import Settings, find_line
from headrace.store import Store


class Harm:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.path,)


def of_shop(told: Registry) -> OnDemandFeatureView:
    return next(view for view in told.on_demand_feature_views if view.spec.name == "shop_inputs")


def change(registry: Path, body: bytes, text: str) -> None:
    """Put another function behind the line's on-demand view."""
    told = Registry.FromString(registry.read_bytes())
    view = of_shop(told)
    for function in (
        view.spec.feature_transformation.user_defined_function,
        view.spec.user_defined_function,
    ):
        function.body, function.body_text = body, text
    registry.write_bytes(told.SerializeToString())


def history(settings: Settings) -> pa.Table:
    spec = find_line(settings, "shop")
    asked = pa.table({name: [None] for name in spec.columns} | {"request_at": [1]})
    return Store(settings).read_history(spec, asked)


def test_pickled_functions_are_refused_and_source_is_enough(
    tmp_path: Path, apply_lines: Callable[..., Settings]
) -> None:
    settings = apply_lines(tmp_path)
    registry, harmed = settings.home / "feast" / "registry.db", tmp_path / "harmed"
    kept = registry.read_bytes()
    view = of_shop(Registry.FromString(kept))
    text = view.spec.feature_transformation.user_defined_function.body_text
    assert text.startswith("def shop_inputs")
    harm = dill.dumps(Harm(harmed))
    change(registry, harm, text)
    assert history(settings).num_rows == 1
    change(registry, harm, "")
    with pytest.raises(IntegrityError, match=r"never loaded; run `headrace up`"):
        history(settings)
    assert not harmed.exists()
    dill.loads(harm)
    assert harmed.exists()  # it would have been


def test_feast_unpickles_by_dill_alone() -> None:
    found = find_spec("feast")
    assert found is not None and found.origin is not None
    root, reading = Path(found.origin).parent, []
    other = re.compile(
        r"^[^#\n]*\b(pickle|cloudpickle|joblib)\.loads?\(|import loads", re.MULTILINE
    )
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "serde.py" and "tests" not in path.parts and other.search(text):
            reading.append(path)
    assert reading == []

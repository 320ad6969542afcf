"""The engines of bench/trainer.py, one in each process: `python -m bench._trainers NAME WORLD OWN`.

A process builds its engine, says `ready`, then for each line `learn START STOP` learns those rows
and answers with CPU seconds of the whole process (all threads), and for `score FROM COUNT` with
the AUC of those rows. Turning Arrow, NumPy or a cache file into what an engine eats is inside its
clock; hashing texts is not, all get integer ids.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench._clicks import CROSSES, FIELDS, NUMBERS, auc, read

BATCH = 1024
LARGE_BATCH = 8192
HIDDEN = (32, 16)
DIM = 16
Data = dict[str, NDArray[Any]]


class Engine(Protocol):
    """Learns rows in order and predicts others."""

    def prepare(self, start: int, stop: int) -> None:
        """Whatever stands outside the clock."""

    def learn(self, start: int, stop: int) -> None: ...

    def predict(self, start: int, stop: int) -> NDArray[Any]: ...


class Headrace:
    """`Model` over an Arrow table of ids, crossed as `requests` does."""

    def __init__(self, data: Data, family: str, bits: int, dim: int = DIM) -> None:
        from headrace.declaration import ModelSpec
        from headrace.model import Model

        self.data, self.deep = data, family != "ftrl"
        ids = [f"id{i}" for i in range(FIELDS)]
        buckets = [f"bucket{i}" for i in range(NUMBERS)]
        crosses = [f"cross{i}" for i in range(len(CROSSES))]
        spec = ModelSpec(
            family=family,
            categorical=(*ids, *buckets, *crosses),
            wide=(*buckets, *crosses) if family == "ftrl_deep" else (),
            numeric=tuple(f"number{i}" for i in range(NUMBERS)) if self.deep else (),
            table_bits=bits,
            embedding_dim=dim,
            hidden=HIDDEN,
            batch_size=BATCH,
            ftrl_alpha=0.1,
            ftrl_l2=0.0,
            embedding_learning_rate=0.02,
            dense_learning_rate=0.001,
        )
        self.model = Model(spec, seed=0)

    def prepare(self, start: int, stop: int) -> None:
        """Columns, as a reader of samples gives them."""
        import pyarrow as pa

        part = slice(start, stop)
        names = {"id": "ids", "number": "numbers", "bucket": "buckets"}
        columns = {
            f"{name}{i}": np.ascontiguousarray(column)
            for name, source in names.items()
            for i, column in enumerate(self.data[source][part].T)
        }
        label = np.asarray(self.data["labels"][part])
        weights = {"positive_weight": label, "negative_weight": 1 - label}
        self.table = pa.table({**columns, **weights})

    def _crossed(self) -> Any:
        import pyarrow as pa

        from headrace.hashes import cross64

        table = self.table
        for number, pair in enumerate(CROSSES):
            ids = cross64([table[f"id{field}"].to_numpy() for field in pair])
            table = table.append_column(f"cross{number}", pa.array(ids))
        return table

    def learn(self, start: int, stop: int) -> None:
        self.model.learn(self._crossed())

    def predict(self, start: int, stop: int) -> NDArray[Any]:
        self.prepare(start, stop)
        return self.model.predict(self._crossed())


class VowpalWabbit:
    """Its FTRL over its own binary cache, one namespace a field, crosses by `-q`."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.engine: Any = None
        letters = [chr(ord("a") + i) for i in range(26)] + [chr(ord("A") + i) for i in range(13)]
        self.line = "%d " + " ".join(f"|{letter} %d" for letter in letters)
        crosses = " ".join(f"-q {letters[i]}{letters[j]}" for i, j in CROSSES)
        # a saved model forgets its rates, so that they are said at each load
        rates = "--ftrl --ftrl_alpha 0.1 --ftrl_beta 1.0"
        self.options = f"-b 22 --loss_function logistic {rates} {crosses}"

    def prepare(self, start: int, stop: int) -> None:
        """Write the text and turn it into a cache."""
        from vowpalwabbit import Workspace

        if self.engine is not None:
            self.engine.finish()  # writes the model
        part, text = slice(start, stop), self.folder / "vw.txt"
        label = np.where(self.data["labels"][part] > 0, 1, -1)[:, None]
        rows = np.concatenate([label, self.data["ids"][part], self.data["buckets"][part]], 1)
        with text.open("w") as file:
            file.writelines(self.line % tuple(row) + "\n" for row in rows.tolist())
        cache, model = self.folder / "vw.cache", self.folder / "vw.model"
        cache.unlink(missing_ok=True)
        Workspace(f"--noop -d {text} --cache_file {cache} -b 22 --quiet").finish()
        # without -d nothing is read before run_parser, so that loading stays outside the clock
        known = "" if self.engine is None else f"-i {model}"
        self.engine = Workspace(
            f"--quiet {self.options} {known} --cache_file {cache} --save_resume -f {model}"
        )

    def learn(self, start: int, stop: int) -> None:
        self.engine.run_parser()

    def predict(self, start: int, stop: int) -> NDArray[Any]:
        from vowpalwabbit import Workspace

        self.prepare(start, stop)
        self.engine.finish()  # it has read nothing: the model is as it was
        model, answers = self.folder / "vw.model", self.folder / "vw.answers"
        test = Workspace(
            f"--quiet -t -i {model} --cache_file {self.folder / 'vw.cache'} -p {answers}"
        )
        test.run_parser()
        test.finish()
        return np.loadtxt(answers)


class KerasFit:
    """`Model.fit` with Adagrad of the network that `ftrl_deep` has beside its linear part.

    One shared embedding table of rows hashed in advance, as `Model` shares one. `legacy`: tf-keras,
    whose Adagrad is sparse; that of Keras 3 goes over the whole table in each batch, which is why
    it is also shown with large ones.
    """

    def __init__(self, data: Data, bits: int, legacy: bool, batch: int = BATCH) -> None:
        if legacy:
            import tf_keras as keras
        else:
            import keras
        self.data, self.bits, self.batch = data, bits, batch
        keras.utils.set_random_seed(0)
        ids = keras.Input((FIELDS,), dtype="int32")
        numbers = keras.Input((NUMBERS,))
        embedded = keras.layers.Flatten()(keras.layers.Embedding(1 << bits, DIM)(ids))
        layer = keras.layers.Concatenate()([embedded, numbers])
        for width in HIDDEN:
            layer = keras.layers.Dense(width, activation="relu")(layer)
        answer = keras.layers.Dense(1, activation="sigmoid")(layer)
        self.model = keras.Model([ids, numbers], answer)
        self.model.compile(keras.optimizers.Adagrad(0.05), loss="binary_crossentropy")

    def prepare(self, start: int, stop: int) -> None:
        from headrace.model.inputs import field_salt, mix

        salts = np.array([field_salt(0, str(i)) for i in range(FIELDS)], np.uint64)
        part = slice(start, stop)
        ids = mix(list(np.ascontiguousarray(self.data["ids"][part].T)), salts, self.bits)
        self.inputs = [ids, self.data["numbers"][part].astype(np.float32)]

    def learn(self, start: int, stop: int) -> None:
        self.model.fit(
            self.inputs, self.data["labels"][start:stop], self.batch, verbose=0, shuffle=False
        )

    def predict(self, start: int, stop: int) -> NDArray[Any]:
        self.prepare(start, stop)
        return np.asarray(self.model.predict(self.inputs, 4096, verbose=0))[:, 0]


class LightGbmRefit:
    """100 trees of 127 leaves on its first rows; afterwards leaf values are refitted."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.booster: Any = None

    def prepare(self, start: int, stop: int) -> None:
        part = slice(start, stop)
        self.inputs = np.concatenate([self.data["ids"][part], self.data["numbers"][part]], 1)

    def learn(self, start: int, stop: int) -> None:
        import lightgbm

        labels = self.data["labels"][start:stop]
        if self.booster is None:
            options = {"objective": "binary", "num_leaves": 127, "verbose": -1, "num_threads": 1}
            self.booster = lightgbm.train(options, lightgbm.Dataset(self.inputs, labels), 100)
        else:
            self.booster = self.booster.refit(self.inputs, labels)

    def predict(self, start: int, stop: int) -> NDArray[Any]:
        self.prepare(start, stop)
        return np.asarray(self.booster.predict(self.inputs, num_threads=1))


class River:
    """Logistic regression with FTRL-proximal over dictionaries, crosses included."""

    def __init__(self, data: Data) -> None:
        from river import linear_model, optim

        self.data = data
        optimizer = optim.FTRLProximal(alpha=0.1, beta=1.0, l1=0.0, l2=0.0)
        self.model = linear_model.LogisticRegression(optimizer)

    def prepare(self, start: int, stop: int) -> None:
        part = slice(start, stop)
        columns = np.concatenate([self.data["ids"][part], self.data["buckets"][part]], 1)
        self.rows = [dict.fromkeys(self._keys(row), 1.0) for row in columns.tolist()]

    @staticmethod
    def _keys(row: list[int]) -> list[Any]:
        return [*enumerate(row), *((i, j, row[i], row[j]) for i, j in CROSSES)]

    def learn(self, start: int, stop: int) -> None:
        labels = self.data["labels"][start:stop] > 0
        for row, label in zip(self.rows, labels.tolist(), strict=True):
            self.model.learn_one(row, label)

    def predict(self, start: int, stop: int) -> NDArray[Any]:
        self.prepare(start, stop)
        return np.array([self.model.predict_proba_one(row).get(True, 0.5) for row in self.rows])


def build(name: str, data: Data, folder: Path) -> Engine:
    """An engine by the name that the benchmark calls it; `@` is followed by its table's bits.

    `ftrl_deep_8` has embeddings of 8 numbers, `keras_large` learns in batches of `LARGE_BATCH`.
    """
    family, _, bits = name.partition("@")
    builders: dict[str, Callable[[], Engine]] = {
        "ftrl_deep_8": lambda: Headrace(data, "ftrl_deep", int(bits), dim=8),
        "keras": lambda: KerasFit(data, int(bits), legacy=False),
        "keras_large": lambda: KerasFit(data, int(bits), legacy=False, batch=LARGE_BATCH),
        "tf_keras": lambda: KerasFit(data, int(bits), legacy=True),
        "vowpalwabbit": lambda: VowpalWabbit(data, folder),
        "lightgbm": lambda: LightGbmRefit(data),
        "river": lambda: River(data),
    }
    return builders.get(family, lambda: Headrace(data, family, int(bits)))()


class Session:
    """An engine that answers the commands above."""

    def __init__(self, name: str, world: Path, own: Path) -> None:
        self.data = read(world)
        self.engine = build(name, self.data, own)

    def ask(self, command: str) -> float:
        """CPU seconds of learning, or the AUC."""
        verb, start, stop = command.split(maxsplit=1)[0], *map(int, command.split()[1:])
        if verb == "score":
            return auc(self.data["labels"][start:stop], self.engine.predict(start, stop))
        self.engine.prepare(start, stop)
        started = time.process_time()
        self.engine.learn(start, stop)
        return time.process_time() - started


def main() -> None:
    """Answer commands on standard input until it ends; answers are JSON lines."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever an engine prints must not mix with them
    session = Session(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    answers.write("ready\n")
    for command in sys.stdin:
        answers.write(json.dumps(session.ask(command)) + "\n")


if __name__ == "__main__":
    main()

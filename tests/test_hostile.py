"""Model directories, problem files and policies' texts are data: none of them is executed."""

import ast
import json
import pathlib
import pickle
import struct

import pyarrow
import pyarrow.parquet
import pytest

from remix_jax.data.problems import load_problems
from remix_jax.errors import InputError
from remix_jax.models import hf_tokenizer, huggingface
from tests import tiny_models

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXECUTING = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "code", "runpy"}


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return (pathlib.Path(self.target).touch, ())


@pytest.fixture
def fuse(tmp_path):
    """A path that no file may appear at."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "it was executed"


@pytest.fixture
def model_directory(tmp_path):
    model, params = tiny_models.random_decoder(tiny_models.decoder_config())
    tiny_models.write_tokenizer(tmp_path / "model")
    huggingface.save(model, params, tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "saved" / name).rename(tmp_path / "model" / name)
    return tmp_path / "model"


def sources():
    for folder in ("remix_jax", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def test_nothing_that_executes_data_is_used():
    """No pickle, eval or exec; np.load without pickles; trust_remote_code off wherever named."""
    found = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found += [(path, a.name) for a in node.names if a.name.split(".")[0] in EXECUTING]
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in EXECUTING:
                found.append((path, node.module))
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in ("eval", "exec", "compile", "__import__", "torch.load", "yaml.load"):
                found.append((path, name))
            if name.endswith("np.load") and given.get("allow_pickle") != "False":
                found.append((path, name))
            if given.get("trust_remote_code", "False") != "False":
                found.append((path, "trust_remote_code"))
    assert found == []


def test_pickled_weights_are_not_read(model_directory, fuse):
    (model_directory / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors"):
        (model_directory / name).write_bytes(pickle.dumps(Bomb(fuse)))
        with pytest.raises(InputError, match=r"neither model.safetensors|missing or damaged"):
            huggingface.load(model_directory)


def test_code_of_a_model_directory_is_not_run(model_directory, fuse):
    code = f"import pathlib\npathlib.Path({str(fuse)!r}).touch()\nclass Evil: pass\n"
    (model_directory / "evil.py").write_text(code)
    for name, entry in (
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
    ):
        path = model_directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": entry}))
    huggingface.load(model_directory)
    assert hf_tokenizer.load_tokenizer(model_directory).chat_template


TEMPLATES = {
    "import": "{{ cycler.__init__.__globals__.os.system('touch FUSE') }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute": "{{ messages.__class__.__base__.__subclasses__() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "mutation": "{{ messages.append(1) }}",
    "endless": "{% for i in range(10**9) %}a{% endfor %}",
    "no template": "{{ unclosed",
    "file": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_chat_templates_run_in_a_sandbox(case, model_directory, fuse):
    path = model_directory / "tokenizer_config.json"
    template = TEMPLATES[case].replace("FUSE", str(fuse))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    with pytest.raises(InputError, match="does not render one user message") as error:
        hf_tokenizer.load_tokenizer(model_directory)
    assert "\n" not in str(error.value)


def header(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text


def entry(shape, begin, end, dtype="F32"):
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    return header(json.dumps({"model.norm.weight": tensor}).encode())


HEADERS = {
    "empty file": b"",
    "length alone": struct.pack("<Q", 8),
    "a length beyond any memory": header(b"{}", 2**63),
    "a length beyond the file": header(b"{}", 10**6),
    "no JSON": header(b"\xff\xfe not json"),
    "deep JSON": header(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a list": header(b"[1, 2]"),
    "offsets beyond the file": entry([4], 0, 16),
    "negative offsets": entry([4], -16, 0),
    "offsets backwards": entry([4], 16, 0) + bytes(16),
    "a shape of other bytes": entry([1000], 0, 16) + bytes(16),
    "a shape beyond 64 bits": entry([2**40, 2**40], 0, 16) + bytes(16),
    "a negative shape": entry([-4], 0, 16) + bytes(16),
    "unknown dtype": entry([4], 0, 16, "OBJECT") + bytes(16),
    "bytes that no tensor has": entry([4], 0, 16) + bytes(99),
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_safetensors_are_refused(case, model_directory):
    (model_directory / "model.safetensors").write_bytes(HEADERS[case])
    with pytest.raises(InputError, match=r"model\.safetensors: missing or damaged") as error:
        huggingface.load(model_directory)
    assert "\n" not in str(error.value)


def test_an_index_reads_no_file_outside_of_its_directory(model_directory):
    index = {"weight_map": {"model.norm.weight": "../../etc/passwd"}}
    (model_directory / "model.safetensors").unlink()
    (model_directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="must be the name of a file beside it"):
        huggingface.load(model_directory)


def test_pickles_in_a_parquet_file_stay_bytes(tmp_path, fuse):
    """Old versions of pyarrow unpickled such an extension type while they read the schema."""
    bomb = pickle.dumps(Bomb(fuse))
    names = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    field = pyarrow.field(
        "answer", pyarrow.string(), metadata=names | {b"ARROW:extension:metadata": bomb}
    )
    schema = pyarrow.schema([pyarrow.field("problem", pyarrow.string()), field])
    table = pyarrow.table([["1 + 1"], ["2"]], schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "set.parquet")
    assert load_problems(tmp_path / "set.parquet")[0].answers == ("2",)


@pytest.mark.parametrize("key", ["pythonClassName", "legacy", "nested"])
def test_a_prepared_directory_names_no_code(tmp_path, fuse, key, monkeypatch):
    """TFDS imports the module of any class that features.json names."""
    (tmp_path / "evil_features.py").write_text(
        f"import pathlib\npathlib.Path({str(fuse)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    evil = {"pythonClassName": "evil_features.Evil", "jsonFeature": {"json": "{}"}}
    if key == "legacy":
        evil = {"type": "evil_features.Evil", "content": {}}
    own = {"pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict"}
    if key == "nested":
        evil = own | {"jsonFeature": {"json": json.dumps({"a": {"type": "evil_features.Evil",
                                                                "content": "{}"}})}}  # fmt: skip
    folder = tmp_path / "set" / "1.0.0"
    folder.mkdir(parents=True)
    info = {"name": "set", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = evil if key == "legacy" else own | {"featuresDict": {"features": {"a": evil}}}
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match=r"names the class evil_features\.Evil"):
        load_problems(folder)

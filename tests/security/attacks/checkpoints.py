"""All attacks by name: the files of a checkpoint, and how reading it must end."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from tests.security.attacks import records
from tests.security.attacks.pickles import (
    DCP,
    FILE,
    KEY,
    MEMO,
    built,
    call,
    chunk,
    dict_of,
    get,
    index,
    info,
    list_of,
    metadata,
    name,
    number,
    one_tensor,
    program,
    size,
    tensor_entry,
    text,
    tuple_of,
)

UNSAFE, BAD, DONE = 4, 3, 0
RECORD = records.record(records.tensor())


@dataclass(frozen=True)
class Attack:
    """Files to write, and the exit code and words that must answer them."""

    files: dict[str, bytes]
    code: int
    words: str = ""
    links: dict[str, str] = field(default_factory=dict)
    special: Callable[[Path], None] = lambda _folder: None

    def write(self, folder: Path) -> None:
        """Lay the checkpoint down in `folder`."""
        folder.mkdir(parents=True)
        for file, content in self.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        for link, target in self.links.items():
            (folder / link).symlink_to(target)
        self.special(folder)


def of_metadata(data: bytes, code: int, words: str = "") -> Attack:
    """A hostile `.metadata` beside an honest record."""
    return Attack({".metadata": data, FILE: RECORD}, code, words)


def of_record(data: bytes, code: int, words: str = "", descriptors: bytes = b"N") -> Attack:
    """A hostile record that an honest `.metadata` names."""
    described = one_tensor(len(data), descriptors=descriptors)
    return Attack({".metadata": described, FILE: data}, code, words)


# ---- Names that a pickle must not get at ----

COMMAND = "touch CANARY"
CALLABLES = [
    ("os", "system"), ("posix", "system"), ("nt", "system"), ("os", "popen"),
    ("subprocess", "Popen"), ("subprocess", "check_output"), ("builtins", "eval"),
    ("builtins", "exec"), ("builtins", "getattr"), ("builtins", "__import__"),
    ("__builtin__", "eval"), ("builtins", "open"), ("builtins", "compile"),
    ("importlib", "import_module"), ("runpy", "run_path"), ("pty", "spawn"),
    ("copyreg", "_reconstructor"), ("copy_reg", "_reconstructor"), ("copyreg", "__newobj__"),
    ("copyreg", "__newobj_ex__"), ("copyreg", "add_extension"), ("functools", "partial"),
    ("functools", "reduce"), ("operator", "attrgetter"), ("operator", "methodcaller"),
    ("types", "CodeType"), ("types", "FunctionType"), ("pickle", "loads"), ("_pickle", "loads"),
    ("shutil", "rmtree"), ("webbrowser", "open"), ("pdb", "run"), ("timeit", "timeit"),
    ("torch", "load"), ("torch.serialization", "load"), ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"), ("torch._utils", "_rebuild_wrapper_subclass"),
    ("torch._tensor", "_rebuild_from_type_v2"), ("torch", "Tensor"), ("torch", "compile"),
    ("torch.ops", "load_library"), ("torch", "_C"), ("torch.jit", "load"),
    ("torch.utils.cpp_extension", "load_inline"), ("torch", "classes.load_library"),
    ("torch", "Size.__class__"), ("torch", "float32.__reduce__"), ("torch", "ops.load_library"),
    ("torch", "float31"), ("torch", "__builtins__"), ("pathlib", "PosixPath.unlink"),
    ("pathlib", "Path"), ("collections", "OrderedDict.__init__"), ("collections", "defaultdict"),
    ("hubmerge.checkpoint.unpickle", "load"), ("hubmerge.checkpoint.metadata", "_Metadata"),
    (DCP, "Metadata.__class__"), (DCP, "os.system"), ("", ""), ("torch\n", "Size"),
]  # fmt: skip


def shared_tuples(depth: int) -> bytes:
    """A tuple that takes 2**depth steps to print, or to hash; it must begin the memo."""
    return b"()\x94" + b"".join(get(n) + get(n) + b"\x86\x94" for n in range(depth)) + b"t"


def _named(module: str, qualified: str) -> bytes:
    return call(name(module, qualified), text(COMMAND))


def names() -> dict[str, Attack]:
    """Each name called at the top of `.metadata`, deep in it, and in a record."""
    attacks = {}
    for number_, (module, qualified) in enumerate(CALLABLES):
        evil, words = _named(module, qualified), f"{module}.{qualified}".replace("\n", "")
        deep = dict_of((text("x"), tuple_of(list_of(evil), b"N")))
        words = words if "\n" not in module else "torch"
        attacks[f"name-top-{number_}"] = of_metadata(program(evil), UNSAFE, words)
        attacks[f"name-deep-{number_}"] = of_metadata(
            one_tensor(len(RECORD), planner=deep), UNSAFE, words
        )
    return attacks


def record_names() -> dict[str, Attack]:
    """Each name in a record's pickle."""
    known = {("torch._utils", "_rebuild_tensor_v2")}
    return {
        f"record-name-{number_}": of_record(
            records.record(program(_named(module, qualified))), UNSAFE, qualified
        )
        for number_, (module, qualified) in enumerate(CALLABLES)
        if (module, qualified) not in known
    }


# ---- Opcodes ----


def opcodes() -> dict[str, Attack]:
    """Opcodes that no writer of torch uses, and lengths that no file has."""
    system = b"(" + text(COMMAND) + b"ios\nsystem\n."
    huge = {
        "frame": b"\x95" + b"\xff" * 8,
        "binunicode": b"X" + b"\xff" * 4,
        "binunicode8": b"\x8d" + struct.pack("<Q", 2**60),
        "binbytes": b"B" + struct.pack("<I", 2**31),
        "long1": b"\x8a\xff",
    }
    refused = {
        "inst": system,
        "obj": b"(" + name("os", "system") + text(COMMAND) + b"o.",
        "global": b"cos\nsystem\n(" + text(COMMAND) + b"tR.",
        "ext1": b"\x82\x01.",
        "ext2": b"\x83\x01\x00.",
        "ext4": b"\x84\x01\x00\x00\x00.",
        "persid": b"Pabc\n.",
        "binpersid": b"\x80\x04" + text("abc") + b"Q.",
        "newobj-ex": b"\x80\x04" + name("torch", "Size") + b")}\x92.",
        "binbytes8": b"\x8e" + struct.pack("<Q", 2**60),
        "bytearray8": b"\x96" + struct.pack("<Q", 2**60),
        "next-buffer": b"\x97.",
        "readonly-buffer": b"\x98.",
        "long4": b"\x8b" + struct.pack("<I", 2**31 - 1),
        "text-long": b"L" + b"9" * 100_000 + b"L\n.",
        "text-int": b"I" + b"9" * 100_000 + b"\n.",
        "float": b"F1e9\n.",
        "string": b"S'a'\n.",
        "unicode": b"Va\n.",
        "get": b"g0\n.",
        "put": b"Np0\n.",
        "dup": b"N2.",
        "pop": b"NN0.",
        "pop-mark": b"(1N.",
        "dict": b"(d.",
        "list": b"(l.",
        "set": b"\x8f(N\x90.",
        "frozenset": b"(\x91.",
        "unknown": b"\xfe.",
        "memo-huge": b"Nr" + struct.pack("<I", 2**32 - 1) + b".",
        "memo-large": b"Nr" + struct.pack("<I", 2**28) + b".",
    }
    attacks = {f"opcode-{key}": of_metadata(data, UNSAFE) for key, data in refused.items()}
    attacks |= {f"length-{key}": of_metadata(data + b".", BAD) for key, data in huge.items()}
    damaged = {
        "empty": b"",
        "stop": b".",
        "none": b"N.",
        "no-stop": b"\x80\x04N",
        "stack-underflow": b"\x80\x04R.",
        "no-mark": b"\x80\x04t.",
        "get-missing": b"\x80\x04h\x07.",
        "bad-utf8": b"\x80\x04\x8c\x01\xff.",
        "protocol": b"\x80\xffN.",
        "reduce-of-text": program(text("os.system") + b")R"),
        "newobj-of-text": program(text("os.system") + b")\x81"),
        "global-of-numbers": b"\x80\x04K\x01K\x02\x93.",
        "append-to-none": program(b"N(Ne"),
        "unhashable-key": program(dict_of((b"]", b"N"))),
    }
    attacks |= {f"damaged-{key}": of_metadata(data, BAD) for key, data in damaged.items()}
    return attacks


def states() -> dict[str, Attack]:
    """BUILD on what must keep no trace of it."""
    cls = name(DCP, "Metadata")
    setting = dict_of((text("state"), b"N"), (text("__setstate__"), b"N"))
    slots = tuple_of(b"N", setting)
    made = {
        "class": cls + setting,
        "class-slots": cls + slots,
        "torch-size": name("torch", "Size") + slots,
        "dict": name("collections", "OrderedDict") + slots,
        "dict-object": b"}" + setting,
        "dtype": name("torch", "float32") + slots,
        "tuple": b")" + setting,
        "none": b"N" + setting,
        "object": built(DCP, "Metadata", setting),
        "object-slots": built(DCP, "Metadata", slots),
        "object-class": built(DCP, "Metadata", tuple_of(b"N", dict_of((text("__class__"), cls)))),
    }
    attacks = {
        f"build-{key}": of_metadata(program(data + b"b"), BAD)
        for key, data in made.items()
        if not key.startswith("object")
    }
    return attacks | {
        f"build-{key}": of_metadata(program(data), BAD)
        for key, data in made.items()
        if key.startswith("object")
    }


# ---- Much out of little ----


def repeated(first: bytes, times: bytes, count: int) -> bytes:
    """Make a thing once (memo 0), then do something with it again and again."""
    return program(b"(" + first + b"\x94" + times * count + b"t")


def hashed() -> dict[str, Attack]:
    """Keys of dicts that it would take for ever, or end the process, to hash."""
    keys = {
        "shared": shared_tuples(60),
        "deep": b"N" + b"\x85" * 300_000,
        "wide": tuple_of(b")\x94", b"(" + get(0) * 3000 + b"t\x94",
                         b"(" + get(1) * 3000 + b"t\x94", b"(" + get(2) * 3000 + b"t"),
    }  # fmt: skip
    dicts = {
        "several": lambda key: b"}(" + key + b"N" + text("b") + b"Nu",
        "single": lambda key: b"}" + key + b"Ns",
        "ordered": lambda key: name("collections", "OrderedDict") + b")R(" + key + b"Nu",
    }
    attacks = {}
    for kind, key in keys.items():
        for how, make in dicts.items():
            # In front of all else, since `shared` counts the memo.
            state = dict_of((text("planner_data"), make(key)), (text("storage_data"), dict_of()),
                            (text("state_dict_metadata"), dict_of()))  # fmt: skip
            hostile = of_metadata(program(built(DCP, "Metadata", state)), DONE)
            attacks[f"bomb-hashed-{kind}-{how}"] = hostile
    return attacks


def bombs() -> dict[str, Attack]:
    """A few megabytes that ask for all memory, or all time."""
    long_tuple = b"(" + b"N" * 300_000 + b"t"
    long_list = b"](" + b"N" * 300_000 + b"e"
    long_dict = dict_of(*((number(n), b"N") for n in range(60_000)))
    long_text = text("x" * 300_000)
    torch_size, ordered = name("torch", "Size"), name("collections", "OrderedDict")
    entry, box = name(DCP, "TensorStorageMetadata"), name(DCP, "ChunkStorageMetadata")
    zero = size(0)
    deep = 300_000
    again = {
        "copied-text": (long_text, torch_size + get(0) + b"\x85R"),
        "copied-list": (long_list, torch_size + get(0) + b"\x85R"),
        "copied-arguments": (long_tuple, entry + get(0) + b"R"),
        "copied-newobj": (long_tuple, entry + get(0) + b"\x81"),
        "copied-pairs": (long_list, ordered + get(0) + b"\x85R"),
        "copied-state": (long_dict, box + b")\x81" + get(0) + b"b"),
    }
    attacks = {
        f"bomb-{key}": of_metadata(repeated(first, times, 40_000), BAD)
        for key, (first, times) in again.items()
    }
    doubled = shared_tuples(60)
    attacks["bomb-printed-offset"] = of_metadata(
        metadata(dict_of(), dict_of((index(text(KEY), doubled), b"N"))), BAD
    )
    for place in ("shape", "offsets", "sizes"):
        hostile = one_tensor(len(RECORD), **{place: doubled})
        attacks[f"bomb-printed-{place}"] = of_metadata(hostile, BAD)
    attacks["bomb-printed-mcore"] = of_metadata(
        metadata(dict_of(), dict_of(), mcore_data=dict_of((text("a"), list_of(doubled)))), DONE
    )
    attacks |= hashed()
    attacks["bomb-nested"] = of_metadata(program(b"]" * deep + b"a" * (deep - 1)), BAD)
    many = b"".join(text(f"k{n}") + tensor_entry(size(0), get(0)) for n in range(20_000))
    one_list = b"](" + chunk(zero, zero) * 20_000 + b"e"
    state = dict_of(
        (text("planner_data"), one_list + MEMO),
        (text("state_dict_metadata"), b"}(" + many + b"u"),
        (text("storage_data"), b"}"),
    )
    attacks["bomb-shared-chunks"] = of_metadata(
        program(built(DCP, "Metadata", state)), UNSAFE, "more chunks than"
    )
    long_size = tuple_of(*[number(0)] * 200_000)
    boxes = list_of(*[chunk(zero, get(0))] * 20_000)
    state = dict_of(
        (text("planner_data"), long_size + MEMO),
        (text("state_dict_metadata"), dict_of((text(KEY), tensor_entry(size(0), boxes)))),
        (text("storage_data"), b"}"),
    )
    attacks["bomb-shared-dimensions"] = of_metadata(
        program(built(DCP, "Metadata", state)), BAD, "malformed chunk"
    )
    return attacks


# ---- Types and numbers ----


def values() -> dict[str, Attack]:
    """Honest structure, hostile values."""
    length = len(RECORD)
    many = tuple_of(*[number(1)] * 65)
    parts: dict[str, tuple[dict[str, bytes], int]] = {
        "shape-bool": ({"shape": tuple_of(b"\x88", number(4))}, BAD),
        "shape-negative": ({"shape": size(-4, -4)}, BAD),
        "shape-huge": ({"shape": size(2**61, 2**61)}, UNSAFE),
        "shape-product": ({"shape": size(2**40, 2**40)}, UNSAFE),
        "shape-2000-bits": ({"shape": size(2**2000, 1)}, BAD),
        "shape-65": ({"shape": many, "offsets": many, "sizes": many}, BAD),
        "shape-text": ({"shape": text("4,4")}, BAD),
        "shape-float": ({"shape": tuple_of(b"G" + struct.pack(">d", 4.0), number(4))}, BAD),
        "shape-none": ({"shape": b"N"}, BAD),
        "offsets-negative": ({"offsets": size(-1, 0)}, BAD),
        "offsets-bool": ({"offsets": tuple_of(b"\x89", b"\x89")}, BAD),
        "offsets-beyond": ({"offsets": size(1, 0)}, BAD),
        "sizes-short": ({"sizes": size(4)}, BAD),
        "sizes-smaller": ({"sizes": size(3, 4)}, BAD),
        "sizes-larger": ({"sizes": size(5, 4)}, BAD),
        "place-negative": ({"place": number(-1)}, UNSAFE),
        "place-bool": ({"place": b"\x89"}, BAD),
        "place-huge": ({"place": number(2**63)}, UNSAFE),
        "place-beyond": ({"place": number(length)}, BAD),
        "length-negative": ({"length": number(-1)}, UNSAFE),
        "length-huge": ({"length": number(2**80)}, UNSAFE),
        "length-beyond": ({"length": number(2**40)}, BAD),
        "length-short": ({"length": number(20)}, BAD),
        "length-zero": ({"length": number(0)}, BAD),
        "dtype-none": ({"dtype": b"N"}, BAD),
        "dtype-text": ({"dtype": text("float1000")}, BAD),
        "dtype-other": ({"dtype": name("torch", "float64")}, BAD),
        "key-number": ({"key": number(1)}, BAD),
        "key-control": ({"key": text("model.model.a\x1b[2J.weight")}, UNSAFE),
        "key-newline": ({"key": text("model.model.a\n.weight")}, UNSAFE),
        "key-nul": ({"key": text("model.model.a\0.weight")}, UNSAFE),
        "key-surrogate": ({"key": text("model.model.\ud800.weight")}, UNSAFE),
        "key-metadata": ({"key": text("model.__metadata__")}, UNSAFE),
        "descriptors-text": ({"descriptors": text("stream.zstd/1")}, BAD),
        "descriptors-unknown": ({"descriptors": list_of(text("stream.evil/1"))}, BAD),
        "descriptors-many": ({"descriptors": list_of(*[text("stream.zstd/1")] * 1000)}, BAD),
        "descriptors-twice": ({"descriptors": list_of(*[text("stream.zstd/1")] * 2)}, UNSAFE),
        "descriptors-number": ({"descriptors": list_of(number(1))}, BAD),
        "descriptors-wrong": ({"descriptors": list_of(text("stream.zstd/1"))}, BAD),
    }
    return {
        f"value-{key}": of_metadata(one_tensor(length, **changed), code)
        for key, (changed, code) in parts.items()
    }


def chunks() -> dict[str, Attack]:
    """Chunks that do not tile their tensor."""
    length = number(len(RECORD))
    cases = {
        "gap": [((0, 0), (1, 4)), ((2, 0), (2, 4))],
        "missing-end": [((0, 0), (3, 4))],
        "overlap": [((0, 0), (3, 4)), ((2, 0), (2, 4))],
        "inside": [((0, 0), (4, 4)), ((1, 1), (2, 2))],
        "twice-other-size": [((0, 0), (4, 4)), ((0, 0), (2, 4))],
        "pinwheel": [((0, 0), (1, 3)), ((0, 3), (3, 1)), ((3, 1), (1, 3)), ((1, 0), (3, 1)),
                     ((1, 1), (2, 1))],
        "pinwheel-overlap": [((0, 0), (1, 3)), ((0, 3), (3, 1)), ((3, 1), (1, 3)),
                             ((1, 0), (3, 1)), ((1, 1), (3, 1)), ((1, 2), (1, 1))],
        "same-area": [((0, 0), (2, 4)), ((0, 0), (2, 4))],
    }  # fmt: skip
    attacks = {}
    for key, boxes in cases.items():
        entries = dict_of((text(KEY), tensor_entry(
            size(4, 4), list_of(*(chunk(size(*o), size(*s)) for o, s in boxes)))))  # fmt: skip
        places = {o: info(text(FILE), number(0), length) for o, _ in boxes}
        storage = dict_of(*((index(text(KEY), size(*o)), place) for o, place in places.items()))
        attacks[f"chunks-{key}"] = of_metadata(metadata(entries, storage), BAD, KEY)
    entries = dict_of((text(KEY), tensor_entry(size(4, 4), list_of(chunk(size(0, 0), size(4, 4))))))
    twice = (index(text(KEY), size(0, 0)), info(text(FILE), number(0), length))
    attacks["chunks-stored-twice"] = of_metadata(metadata(entries, dict_of(twice, twice)), BAD, KEY)
    attacks["chunks-stored-nowhere"] = of_metadata(metadata(entries, dict_of()), BAD, KEY)
    return attacks


def shapes_of_metadata() -> dict[str, Attack]:
    """Things of the wrong type where a checkpoint has others."""
    wrong = {
        "no-fields": program(built(DCP, "Metadata", dict_of())),
        "no-state": program(name(DCP, "Metadata") + b")\x81"),
        "text-state": program(built(DCP, "Metadata", text("x"))),
        "entries-list": metadata(list_of(text("a")), dict_of()),
        "entries-triple": metadata(list_of(tuple_of(text("a"), b"N", b"N")), dict_of()),
        "storage-list": metadata(dict_of(), list_of(text("a"))),
        "storage-none": metadata(dict_of(), b"N"),
        "entry-none": metadata(dict_of((text("a"), b"N")), dict_of()),
        "entry-stateless": metadata(
            dict_of((text("a"), name(DCP, "TensorStorageMetadata") + b")\x81")), dict_of()
        ),
        "index-text": metadata(dict_of(), dict_of((text("a"), b"N"))),
        "index-stateless": metadata(
            dict_of(), dict_of((name(DCP, "MetadataIndex") + b")\x81", b"N"))
        ),
        "index-of-lists": metadata(dict_of(), dict_of((index(list_of(), list_of()), b"N"))),
        "box-none": metadata(dict_of((text("a"), tensor_entry(size(4), list_of(b"N")))), dict_of()),
        "itself": program(b"]\x94(h\x00e"),
        "itself-deep": program(built(DCP, "Metadata", b"}\x94(" + text("a") + b"h\x02u")),
        "another-class": program(built(DCP, "MetadataIndex", dict_of())),
    }
    return {f"wrong-{key}": of_metadata(data, BAD) for key, data in wrong.items()}


PATHS = [
    "../x.distcp", "a/../../x", "/etc/passwd", "//host/share/x", "\\\\host\\share\\x", "C:\\x",
    "C:x", "..\\x", "a\\..\\..\\x", "\\x", "", ".", "./", "a\0b", "x\n", "\x1b[2J", "..",
    "\ud800",
]  # fmt: skip


def paths() -> dict[str, Attack]:
    """Data files that are elsewhere, or no files."""
    length = len(RECORD)
    attacks = {
        f"path-{number_}": of_metadata(one_tensor(length, path=text(path)), UNSAFE)
        for number_, path in enumerate(PATHS)
    }
    plain = {".metadata": one_tensor(length)}
    folder = Attack(plain, UNSAFE, "not a regular file", special=lambda f: (f / FILE).mkdir())
    pipe = Attack(plain, UNSAFE, "not a regular file", special=lambda f: os.mkfifo(f / FILE))
    linked = {f"../outside/{FILE}": RECORD}
    return attacks | {
        "file-directory": folder,
        "file-pipe": pipe,
        "file-link-outside": Attack(
            plain | linked, UNSAFE, "outside", links={FILE: f"../outside/{FILE}"}
        ),
        "file-link-device": Attack(plain, UNSAFE, "outside", links={FILE: "/dev/zero"}),
        "file-link-loop": Attack(plain, UNSAFE, links={FILE: FILE}),
        "file-link-folder": Attack(
            {".metadata": one_tensor(length, path=text(f"in/{FILE}"))} | linked,
            UNSAFE, "outside", links={"in": "../outside"},
        ),
        "file-missing": Attack(plain, BAD, FILE),
        "file-name-long": of_metadata(one_tensor(length, path=text("x" * 5000)), BAD),
        "file-empty": Attack(plain | {FILE: b""}, BAD, FILE),
    }  # fmt: skip


SHARD = "shard-00001-model-00001-of-00001.safetensors"


def odd_files() -> dict[str, Attack]:
    """Pipes, devices and files of elsewhere in the place of those that describe a checkpoint."""
    honest_metadata = one_tensor(len(RECORD))
    attacks = {}
    for key, file in {"metadata": ".metadata", "rank": "__0.metadata", "shard": SHARD}.items():
        attacks |= {
            f"pipe-{key}": Attack(
                {}, UNSAFE, f"{file}: refused, it is not a regular file",
                special=lambda folder, file=file: os.mkfifo(folder / file),  # type: ignore[misc]
            ),
            f"device-{key}": Attack({}, UNSAFE, "outside", links={file: "/dev/zero"}),
            f"elsewhere-{key}": Attack(
                {f"../elsewhere/{key}": honest_metadata, FILE: RECORD}, UNSAFE, "outside",
                links={file: f"../elsewhere/{key}"},
            ),
        }  # fmt: skip
    honest_files = {".metadata": honest_metadata, FILE: RECORD}
    megatron = "metadata.json"
    return attacks | {
        "pipe-megatron": Attack(honest_files, DONE, special=lambda f: os.mkfifo(f / megatron)),
        "device-megatron": Attack(honest_files, DONE, links={megatron: "/dev/zero"}),
    }


# ---- Records ----


def record_lies() -> dict[str, Attack]:
    """Records that are not what `.metadata` says, or not what they say themselves."""
    two = tuple_of(number(4), number(4))
    doubled = shared_tuples(60)
    pickles = {
        "dtype": records.tensor(storage=name("torch", "DoubleStorage")),
        "dtype-same-size": records.tensor(storage=name("torch", "IntStorage")),
        "shape": records.tensor(sizes=tuple_of(number(2), number(8))),
        "shape-list": records.tensor(sizes=list_of(number(4), number(4))),
        "shape-none": records.tensor(sizes=b"N"),
        "strides-negative": records.tensor(strides=tuple_of(number(-4), number(1))),
        "strides-long": records.tensor(strides=tuple_of(number(16), number(4), number(1))),
        "strides-beyond": records.tensor(strides=tuple_of(number(5), number(1))),
        "strides-huge": records.tensor(strides=tuple_of(number(2**61), number(1))),
        "strides-bool": records.tensor(strides=tuple_of(number(4), b"\x88")),
        "strides-none": records.tensor(strides=b"N"),
        "offset-beyond": records.tensor(offset=number(1)),
        "offset-negative": records.tensor(offset=number(-1)),
        "offset-huge": records.tensor(offset=number(2**62)),
        "count-huge": records.tensor(count=number(2**61)),
        "count-small": records.tensor(count=number(15)),
        "count-larger": records.tensor(count=number(17)),
        "count-text": records.tensor(count=text("16")),
        "payload-name": records.tensor(payload_name=text("1")),
        "payload-printed": records.tensor(payload_name=doubled),
        "printed": records.tensor(sizes=doubled),
        "printed-dtype": records.tensor(storage=doubled),
        "conjugated": records.tensor(more=dict_of((text("conj"), b"\x88"))),
        "object": records.nothing_but_lists(),
        "rebuild-no-arguments": program(name("torch._utils", "_rebuild_tensor_v2") + b")R"),
        "rebuild-newobj": program(name("torch._utils", "_rebuild_tensor_v2") + two + b"\x81"),
        "parameter-empty": program(name("torch._utils", "_rebuild_parameter") + b")R"),
        "persistent-text": program(text("storage") + b"Q"),
        "persistent-short": program(tuple_of(text("storage")) + b"Q"),
        "no-pickle": b"",
        "untyped": records.tensor(storage=name("torch.storage", "UntypedStorage")),
    }
    attacks = {f"record-{key}": of_record(records.record(p), BAD, FILE) for key, p in
               pickles.items()}  # fmt: skip
    honest = records.tensor()
    whole = {
        "big-endian": records.record(honest, byteorder=b"big"),
        "byteorder-long": records.record(honest, byteorder=b"x" * 1000),
        "deflated": records.record(honest, method=8),
        "descriptor": records.record(honest, payload_claims=63),
        "payload-short": records.record(honest, payload=b"\0" * 60),
        "no-payload": records.entry("archive/data.pkl", honest) + b"\0" * 200,
        "only-magic": b"PK\x03\x04",
        "magic-and-zeros": b"PK\x03\x04" + b"\0" * 300,
        "names-huge": b"PK\x03\x04" + b"\xff" * 26 + b"\0" * 300,
        "zeros": b"\0" * 300,
        "ones": b"\xff" * 300,
        "pickle-huge": records.record(honest + b"\0" * 3_000_000),
        "safetensors-length": struct.pack("<Q", 2**63) + b"{}" * 100,
    }
    return attacks | {f"record-{key}": of_record(data, BAD, FILE) for key, data in whole.items()}


ZSTD = list_of(text("stream.zstd/1"))


def compressed() -> dict[str, Attack]:
    """Records behind zstd that grow without end or ask for memory."""

    def packed(data: bytes) -> bytes:
        return zstandard.ZstdCompressor().compress(data)

    huge_window = b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([31 - 10 << 3]) + b"\x01\x00\x00"
    no_end = b"\x28\xb5\x2f\xfd\x00\x58" + struct.pack("<I", (2**17 << 3 | 1 << 1))[:3] * 50_000
    claims = records.tensor(count=number(2**59), offset=number(2**58))
    column = tuple_of(number(1), number(2**55))
    whole = {
        "window": huge_window,
        "endless": no_end,
        "cut": packed(RECORD)[:-30],
        "flipped": packed(RECORD)[:40] + b"\xff\xff" + packed(RECORD)[42:],
        "offset-huge": packed(records.record(claims)) + no_end,
        "strides-huge": packed(records.record(records.tensor(strides=column, count=number(2**59)))),
        "plain": RECORD,
        "nested": packed(packed(RECORD)),
        "empty": b"",
        "other-shape": packed(records.record(records.tensor(sizes=tuple_of(number(16))))),
        "evil": packed(records.record(program(_named("os", "system")))),
    }
    return {
        f"zstd-{key}": of_record(data, UNSAFE if key in ("evil", "flipped") else BAD, "", ZSTD)
        for key, data in whole.items()
    }


# ---- safetensors headers ----


def header(text_: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file."""
    encoded = text_ if isinstance(text_, bytes) else text_.encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def headers() -> dict[str, Attack]:
    """Hostile headers of a folder that `HuggingFaceStorageWriter` would have written."""

    def one(**fields: object) -> str:
        honest = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
        return json.dumps({"model.a": honest | fields})

    data = b"\0" * 64
    two = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
    info_ = json.dumps({"__metadata__": {"DCP_SHARDING_INFO": "[" * 100_000},
                        "a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}})  # fmt: skip
    files = {
        "empty": b"",
        "short": b"\0" * 7,
        "length-huge": header(one(), data, 2**63),
        "length-beyond": header(one(), data, 10_000),
        "length-zero": header("", data, 0),
        "too-long": header(b"{" + b" " * 100_000_001 + b"}"),
        "not-json": header("{]", data),
        "not-utf8": header(b'{"\xff":1}', data),
        "utf16": header('{"a":1}'.encode("utf-16"), data),
        "array": header("[]", data),
        "deep": header("[" * 1_000_000),
        "deep-objects": header('{"a":' * 300_000 + "1" + "}" * 300_000),
        "nan": header(one(shape=[float("nan"), 4]), data),
        "infinity": header('{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,64]}}', data),
        "long-number": header('{"a":' + "9" * 100_000 + "}", data),
        "bool": header(one(shape=[True, 16]), data),
        "negative": header(one(shape=[-4, -4]), data),
        "float": header(one(shape=[4.0, 4]), data),
        "huge-product": header(one(shape=[2**62] * 64), data),
        "many-dimensions": header(one(shape=[2**62] * 200_000), data),
        "offsets-swapped": header(one(data_offsets=[64, 0]), data),
        "offsets-three": header(one(data_offsets=[0, 64, 64]), data),
        "gap": header(one(data_offsets=[4, 68]), data + b"\0" * 4),
        "after": header(one(), data + b"\0"),
        "cut": header(one(), data[:-1]),
        "overlap": header(json.dumps({"a": two, "b": two}), b"\0" * 32),
        "duplicate": header('{"a":' + json.dumps(two) + ',"a":' + json.dumps(two) + "}", data[:32]),
        "dtype": header(one(dtype="F33"), data),
        "dtype-list": header(one(dtype=[[[]]]), data),
        "metadata-list": header('{"__metadata__":[]}'),
        "metadata-number": header('{"__metadata__":{"a":1}}'),
        "sharding-deep": header(info_, data),
        "sharding-array": header(info_.replace("[" * 100_000, "[]"), data),
        "sharding-entry": header(info_.replace("[" * 100_000, '{\\"a\\":1}'), data),
        "sharding-negative": header(
            info_.replace("[" * 100_000, '{\\"a\\":{\\"saved_offsets\\":[-1]}}'), data
        ),
        "sharding-huge": header(
            info_.replace("[" * 100_000, '{\\"a\\":{\\"saved_offsets\\":[9e99]}}'), data
        ),
    }
    return {f"header-{key}": Attack({SHARD: content}, BAD, SHARD) for key, content in
            files.items()}  # fmt: skip


def honest() -> dict[str, Attack]:
    """What all of these are made from; it must be accepted, or refusing them proves nothing."""
    packed = zstandard.ZstdCompressor().compress(RECORD)
    return {
        "honest": of_metadata(one_tensor(len(RECORD)), DONE),
        "honest-zstd": of_record(packed, DONE, descriptors=ZSTD),
        "honest-header": Attack({"shard-0.safetensors": header(
            '{"model.a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}', b"\0" * 64)}, DONE),
        "honest-link": Attack({".metadata": one_tensor(len(RECORD)), "real": RECORD}, DONE,
                              links={FILE: "real"}),
    }  # fmt: skip


def of_description() -> dict[str, Attack]:
    """Attacks that reading the description must stop."""
    return (honest() | names() | opcodes() | states() | bombs() | shapes_of_metadata() | headers()
            | odd_files())  # fmt: skip


def of_data() -> dict[str, Attack]:
    """Attacks that only a conversion meets."""
    return honest() | record_names() | values() | chunks() | paths() | record_lies() | compressed()

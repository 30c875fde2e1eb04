"""The contract may grow; what was promised stays. Doctored descriptors show that each kind of break is seen."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

pytestmark = pytest.mark.unit

PROTO = Path(__file__).resolve().parents[2] / "proto"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"burnish_proto_{name}", PROTO / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


check = load("check_breaking")


@pytest.fixture
def promised() -> FileDescriptorSet:
    return FileDescriptorSet.FromString((PROTO / "burnish_v1.binpb").read_bytes())


def file_of(descriptors: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(file for file in descriptors.file if file.name == f"burnish/v1/{name}.proto")


def message(descriptors: FileDescriptorSet, file: str, name: str) -> DescriptorProto:
    return next(one for one in file_of(descriptors, file).message_type if one.name == name)


def field(descriptors: FileDescriptorSet, file: str, name: str, of: str) -> FieldDescriptorProto:
    return next(one for one in message(descriptors, file, of).field if one.name == name)


def test_the_schemas_keep_the_promise(promised: FileDescriptorSet, tmp_path: Path) -> None:
    assert check.breaks(promised, check.describe(tmp_path / "now.binpb")) == []


def test_additions_break_nothing(promised: FileDescriptorSet) -> None:
    now = FileDescriptorSet.FromString(promised.SerializeToString())
    message(now, "verifier", "VerifyRequest").field.add(name="extra", number=99, type=FieldDescriptorProto.TYPE_STRING, label=1)
    file_of(now, "verifier").message_type.add(name="Extra")
    file_of(now, "verifier").service[0].method.add(name="Extra", input_type=".burnish.v1.Extra", output_type=".burnish.v1.Extra")
    file_of(now, "common").enum_type[0].value.add(name="ROLE_EXTRA", number=99)
    assert check.breaks(promised, now) == []


def renumber(now: FileDescriptorSet) -> None:
    field(now, "verifier", "score", "VerifyResponse").number = 9


def rename(now: FileDescriptorSet) -> None:
    field(now, "verifier", "score", "VerifyResponse").name = "value"


def retype(now: FileDescriptorSet) -> None:
    field(now, "verifier", "score", "VerifyResponse").type = FieldDescriptorProto.TYPE_FLOAT


def repeat(now: FileDescriptorSet) -> None:
    field(now, "tool", "tool", "CallRequest").label = FieldDescriptorProto.LABEL_REPEATED


def leave_oneof(now: FileDescriptorSet) -> None:
    field(now, "tool", "text", "CallResponse").ClearField("oneof_index")


def drop_message(now: FileDescriptorSet) -> None:
    file_of(now, "common").message_type.remove(message(now, "common", "Cancel"))


def drop_map_value(now: FileDescriptorSet) -> None:
    next(one for one in message(now, "verifier", "VerifyResponse").nested_type if one.name == "PartsEntry").field.pop()


def renumber_enum(now: FileDescriptorSet) -> None:
    next(one for one in file_of(now, "common").enum_type if one.name == "Code").value[1].number = 77


def drop_enum_value(now: FileDescriptorSet) -> None:
    next(one for one in file_of(now, "common").enum_type if one.name == "Role").value.pop()


def rename_service(now: FileDescriptorSet) -> None:
    file_of(now, "tool").service[0].name = "Tools"


def drop_method(now: FileDescriptorSet) -> None:
    file_of(now, "tool").service[0].method.pop()


def stop_streaming(now: FileDescriptorSet) -> None:
    file_of(now, "verifier").service[0].method[2].server_streaming = False


def change_input(now: FileDescriptorSet) -> None:
    file_of(now, "verifier").service[0].method[1].input_type = ".burnish.v1.Task"


@pytest.mark.parametrize(
    ("doctor", "says"),
    [
        (renumber, "burnish.v1.VerifyResponse.score = 1 is gone"),
        (rename, "burnish.v1.VerifyResponse.score = 1 is called value now"),
        (retype, "burnish.v1.VerifyResponse.score = 1 changed its type from double to float"),
        (repeat, "burnish.v1.CallRequest.tool = 1 changed its type from string to repeated string"),
        (leave_oneof, "burnish.v1.CallResponse.text = 1 moved into or out of a oneof"),
        (drop_message, "message burnish.v1.Cancel is gone"),
        (drop_map_value, "burnish.v1.VerifyResponse.PartsEntry.value = 2 is gone"),
        (renumber_enum, "burnish.v1.Code.CODE_CANCELLED = 1 is 77"),
        (drop_enum_value, "burnish.v1.Role.ROLE_TOOL = 4 is gone"),
        (rename_service, "service burnish.v1.ToolService is gone"),
        (drop_method, "method burnish.v1.ToolService.CallStream is gone"),
        (stop_streaming, "method burnish.v1.VerifierService.VerifyStream changed what of it is a stream"),
        (change_input, "method burnish.v1.VerifierService.Verify takes .burnish.v1.Task and gives .burnish.v1.VerifyResponse now"),
    ],
)
def test_every_break_is_named(promised: FileDescriptorSet, doctor: Callable[[FileDescriptorSet], None], says: str) -> None:
    now = FileDescriptorSet.FromString(promised.SerializeToString())
    doctor(now)
    assert check.breaks(promised, now) == [says]


def test_the_promise_covers_what_there_is(promised: FileDescriptorSet, tmp_path: Path) -> None:
    now = check.describe(tmp_path / "now.binpb")
    assert check.breaks(now, promised) == [], "additions are promised too: python proto/check_breaking.py --replace"

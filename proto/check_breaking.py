"""Is the contract still one that older clients and servers understand? `python proto/check_breaking.py [--replace]`.

`burnish_v1.binpb` beside this file describes the contract that was promised. Anything may be added to it. Nothing in it may be changed or
removed: no field's number, name, type or label, no enum value, no service, no method or what it takes and gives. `--replace` promises
the schemas as they are from now on, which a deliberate break needs, and which every addition should be followed by.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

PROTO = Path(__file__).resolve().parent
PROMISED = PROTO / "burnish_v1.binpb"


def describe(out: Path) -> FileDescriptorSet:
    """The schemas as they are, compiled into `out`. Raises RuntimeError with protoc's own message when one is wrong."""
    schemas = sorted(str(path.relative_to(PROTO)) for path in (PROTO / "burnish").rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{files('grpc_tools') / '_proto'}"]
    done = subprocess.run(
        [*command, f"--descriptor_set_out={out}", *schemas], cwd=PROTO, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise RuntimeError(f"protoc failed:\n{done.stderr.strip()}")
    return FileDescriptorSet.FromString(out.read_bytes())


def breaks(promised: FileDescriptorSet, now: FileDescriptorSet) -> list[str]:
    """What of the promise does not hold any more, one line each. Empty when everything does."""
    return [line for check in (_messages, _enums, _services) for line in check(promised, now)]


def _messages(promised: FileDescriptorSet, now: FileDescriptorSet) -> Iterator[str]:
    current = dict(_walk(now))
    for name, old in _walk(promised):
        if name not in current:
            yield f"message {name} is gone"
            continue
        fields = {field.number: field for field in current[name].field}
        for field in old.field:
            yield from _field(name, old, field, current[name], fields.get(field.number))
        taken = {number for span in old.reserved_range for number in range(span.start, span.end)}
        for number in sorted(taken & fields.keys()):
            yield f"{name}.{fields[number].name} takes number {number}, which is reserved"


def _field(
    where: str, old_in: DescriptorProto, old: FieldDescriptorProto, new_in: DescriptorProto, new: FieldDescriptorProto | None
) -> Iterator[str]:
    path = f"{where}.{old.name}"
    if new is None:
        yield f"{path} = {old.number} is gone"
        return
    if new.name != old.name:
        yield f"{path} = {old.number} is called {new.name} now"
    if (new.type, new.type_name, new.label) != (old.type, old.type_name, old.label):
        yield f"{path} = {old.number} changed its type from {_type(old)} to {_type(new)}"
    if (_oneof(old_in, old), old.proto3_optional) != (_oneof(new_in, new), new.proto3_optional):
        yield f"{path} = {old.number} moved into or out of a oneof"


def _enums(promised: FileDescriptorSet, now: FileDescriptorSet) -> Iterator[str]:
    current = dict(_walk_enums(now))
    for name, old in _walk_enums(promised):
        if name not in current:
            yield f"enum {name} is gone"
            continue
        values = {value.name: value.number for value in current[name].value}
        for value in old.value:
            if values.get(value.name) != value.number:
                yield f"{name}.{value.name} = {value.number} is {values.get(value.name, 'gone')}"


def _services(promised: FileDescriptorSet, now: FileDescriptorSet) -> Iterator[str]:
    current = {f"{file.package}.{service.name}": service for file in now.file for service in file.service}
    for file in promised.file:
        for service in file.service:
            name = f"{file.package}.{service.name}"
            if name not in current:
                yield f"service {name} is gone"
            else:
                yield from _methods(name, service, current[name])


def _methods(where: str, promised: ServiceDescriptorProto, now: ServiceDescriptorProto) -> Iterator[str]:
    current = {method.name: method for method in now.method}
    for old in promised.method:
        new = current.get(old.name)
        if new is None:
            yield f"method {where}.{old.name} is gone"
        elif (new.input_type, new.output_type) != (old.input_type, old.output_type):
            yield f"method {where}.{old.name} takes {new.input_type} and gives {new.output_type} now"
        elif (new.client_streaming, new.server_streaming) != (old.client_streaming, old.server_streaming):
            yield f"method {where}.{old.name} changed what of it is a stream"


def _walk(descriptors: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    """Every message, nested ones included, by full name."""
    stack = [(file.package, message) for file in descriptors.file for message in file.message_type]
    while stack:
        scope, message = stack.pop()
        name = f"{scope}.{message.name}"
        yield name, message
        stack += [(name, nested) for nested in message.nested_type]


def _walk_enums(descriptors: FileDescriptorSet) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for file in descriptors.file:
        yield from ((f"{file.package}.{enum.name}", enum) for enum in file.enum_type)
    for name, message in _walk(descriptors):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)


def _oneof(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    if not field.HasField("oneof_index") or field.proto3_optional:
        return ""
    return message.oneof_decl[field.oneof_index].name


def _type(field: FieldDescriptorProto) -> str:
    name = field.type_name.lstrip(".") or FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def main(arguments: list[str]) -> int:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        now = describe(Path(folder) / "now.binpb")
    if "--replace" in arguments:
        PROMISED.write_bytes(now.SerializeToString(deterministic=True))
        return 0
    found = breaks(FileDescriptorSet.FromString(PROMISED.read_bytes()), now)
    for line in found:
        print(line)
    if found:
        print(f"The contract would break. If that is meant: python proto/check_breaking.py --replace, and commit {PROMISED.name}.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

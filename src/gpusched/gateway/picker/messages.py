"""Envoy's external-processing messages and gRPC's health messages, as far as a picker needs them.

Names, field numbers and types are those of ``envoy/service/ext_proc/v3/external_processor.proto``,
``envoy/config/core/v3/base.proto``, ``envoy/type/v3/http_status.proto``,
``envoy/extensions/filters/http/ext_proc/v3/processing_mode.proto`` (Envoy 1.40) and
``grpc/health/v1/health.proto``. Fields left out here are kept or skipped as unknown ones. The
descriptors live in a pool of their own, so that other copies of Envoy's messages may be loaded beside.
"""

from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
    struct_pb2,
)

NONE, STREAMED, BUFFERED, BUFFERED_PARTIAL, FULL_DUPLEX_STREAMED = range(5)
"""``ProcessingMode.BodySendMode``."""
OVERWRITE = 2
"""``HeaderValueOption.HeaderAppendAction``: replace what is there, or add."""
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
"""``HealthCheckResponse.ServingStatus``."""

_CORE, _TYPE, _PROC = "envoy.config.core.v3", "envoy.type.v3", "envoy.service.ext_proc.v3"
_HEALTH = "grpc.health.v1"
_SCALARS = {"bytes": 12, "string": 9, "bool": 8, "int32": 5}
_MESSAGE = 11

# Enumerations are read as int32, which has the same encoding: a value that a later Envoy adds stays.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    f"{_CORE}.HeaderValue": {
        "key": (1, "string"),
        "value": (2, "string"),
        "raw_value": (3, "bytes"),
    },
    f"{_CORE}.HeaderValueOption": {
        "header": (1, f"{_CORE}.HeaderValue"),
        "append_action": (3, "int32"),
    },
    f"{_CORE}.HeaderMap": {"headers": (1, f"*{_CORE}.HeaderValue")},
    f"{_CORE}.MetadataEntry": {"key": (1, "string"), "value": (2, "google.protobuf.Struct")},
    f"{_CORE}.Metadata": {"filter_metadata": (1, f"*{_CORE}.MetadataEntry")},
    f"{_TYPE}.HttpStatus": {"code": (1, "int32")},
    f"{_PROC}.ProtocolConfiguration": {
        "request_body_mode": (1, "int32"),
        "response_body_mode": (2, "int32"),
    },
    f"{_PROC}.HttpHeaders": {"headers": (1, f"{_CORE}.HeaderMap"), "end_of_stream": (3, "bool")},
    f"{_PROC}.HttpBody": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    f"{_PROC}.HttpTrailers": {"trailers": (1, f"{_CORE}.HeaderMap")},
    f"{_PROC}.ProcessingRequest": {
        "request_headers": (2, f"|{_PROC}.HttpHeaders"),
        "response_headers": (3, f"|{_PROC}.HttpHeaders"),
        "request_body": (4, f"|{_PROC}.HttpBody"),
        "response_body": (5, f"|{_PROC}.HttpBody"),
        "request_trailers": (6, f"|{_PROC}.HttpTrailers"),
        "response_trailers": (7, f"|{_PROC}.HttpTrailers"),
        "metadata_context": (8, f"{_CORE}.Metadata"),
        "observability_mode": (10, "bool"),
        "protocol_config": (11, f"{_PROC}.ProtocolConfiguration"),
    },
    f"{_PROC}.HeaderMutation": {
        "set_headers": (1, f"*{_CORE}.HeaderValueOption"),
        "remove_headers": (2, "*string"),
    },
    f"{_PROC}.StreamedBodyResponse": {"body": (1, "bytes"), "end_of_stream": (2, "bool")},
    f"{_PROC}.BodyMutation": {
        "body": (1, "|bytes"),
        "streamed_response": (3, f"|{_PROC}.StreamedBodyResponse"),
    },
    f"{_PROC}.CommonResponse": {
        "status": (1, "int32"),
        "header_mutation": (2, f"{_PROC}.HeaderMutation"),
        "body_mutation": (3, f"{_PROC}.BodyMutation"),
        "clear_route_cache": (5, "bool"),
    },
    f"{_PROC}.HeadersResponse": {"response": (1, f"{_PROC}.CommonResponse")},
    f"{_PROC}.BodyResponse": {"response": (1, f"{_PROC}.CommonResponse")},
    f"{_PROC}.TrailersResponse": {"header_mutation": (1, f"{_PROC}.HeaderMutation")},
    f"{_PROC}.ImmediateResponse": {
        "status": (1, f"{_TYPE}.HttpStatus"),
        "headers": (2, f"{_PROC}.HeaderMutation"),
        "body": (3, "bytes"),
        "details": (5, "string"),
    },
    f"{_PROC}.ProcessingResponse": {
        "request_headers": (1, f"|{_PROC}.HeadersResponse"),
        "response_headers": (2, f"|{_PROC}.HeadersResponse"),
        "request_body": (3, f"|{_PROC}.BodyResponse"),
        "response_body": (4, f"|{_PROC}.BodyResponse"),
        "request_trailers": (5, f"|{_PROC}.TrailersResponse"),
        "response_trailers": (6, f"|{_PROC}.TrailersResponse"),
        "immediate_response": (7, f"|{_PROC}.ImmediateResponse"),
        "dynamic_metadata": (8, "google.protobuf.Struct"),
        "override_message_timeout": (10, "google.protobuf.Duration"),
    },
    f"{_HEALTH}.HealthCheckRequest": {"service": (1, "string")},
    f"{_HEALTH}.HealthCheckResponse": {"status": (1, "int32")},
}
"""Fields of each message: number and type; ``*`` repeated, ``|`` in the message's only oneof."""


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    for known in (struct_pb2, duration_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    for package in (_CORE, _TYPE, _PROC, _HEALTH):
        file = descriptor_pb2.FileDescriptorProto(
            name=f"picker/{package}.proto", package=package, syntax="proto3"
        )
        file.dependency.extend(known.DESCRIPTOR.name for known in (struct_pb2, duration_pb2))
        if package == _PROC:
            file.dependency.extend(f"picker/{other}.proto" for other in (_CORE, _TYPE))
        for name, fields in _MESSAGES.items():
            if name.rpartition(".")[0] == package:
                _describe(file.message_type.add(name=name.rpartition(".")[2]), fields)
        pool.Add(file)
    names = (*_MESSAGES, "google.protobuf.Struct")
    return {
        name.rpartition(".")[2]: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for name in names
    }


def _describe(message: Any, fields: dict[str, tuple[int, str]]) -> None:
    if any(kind.startswith("|") for _, kind in fields.values()):
        message.oneof_decl.add(name="one")
    for name, (number, kind) in fields.items():
        plain = kind.lstrip("*|")
        field = message.field.add(name=name, number=number, label=3 if kind[0] == "*" else 1)
        field.type = _SCALARS.get(plain, _MESSAGE)
        if plain not in _SCALARS:
            field.type_name = f".{plain}"
        if kind[0] == "|":
            field.oneof_index = 0


_CLASSES = _classes()
ProcessingRequest: Any = _CLASSES["ProcessingRequest"]
ProcessingResponse: Any = _CLASSES["ProcessingResponse"]
HealthCheckRequest: Any = _CLASSES["HealthCheckRequest"]
HealthCheckResponse: Any = _CLASSES["HealthCheckResponse"]


def set_header(mutation: Any, name: str, value: bytes) -> None:
    """Have Envoy put a header in place of any of that name."""
    option = mutation.set_headers.add(append_action=OVERWRITE)
    option.header.key = name
    option.header.raw_value = value


def header_pairs(header_map: Any) -> list[tuple[bytes, bytes]]:
    """Return names and values of a header map, pseudo-headers such as ``:path`` among them."""
    return [
        (header.key.encode("latin-1", "replace"), header.raw_value or header.value.encode())
        for header in header_map.headers
    ]


def metadata_value(metadata: Any, namespace: str, key: str) -> Any:
    """Return a value of dynamic metadata as plain data; None if it is not there."""
    for entry in metadata.filter_metadata:
        if entry.key == namespace and key in entry.value.fields:
            value = entry.value.fields[key]
            kind = value.WhichOneof("kind")
            if kind == "list_value":
                return [item.string_value for item in value.list_value.values]
            return value.string_value if kind == "string_value" else None
    return None

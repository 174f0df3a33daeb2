"""JSON schemas of the fields that our custom resources use. Their definitions belong to KEDA and the Milvus operator.

They follow keda.sh/v1alpha1 of KEDA 2.16 and milvus.io/v1beta1 of the Milvus operator 1.3. A field that is not listed
here is refused, so that a wrong name is noticed; a new field has to be looked up there first.
"""

from __future__ import annotations

from typing import Any


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT = {"type": "string", "minLength": 1}
SWITCH = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
ANYTHING = {"type": "object"}
NAME = _object(("name",), name=TEXT)

_SCALER = _object(
    ("address", "listName", "listLength"),
    address={"type": "string", "pattern": r"^[\w.-]+:\d+$"},
    listName=TEXT,
    listLength={"type": "string", "pattern": r"^[1-9]\d*$"},  # the values of metadata are strings
    databaseIndex={"type": "string", "pattern": r"^\d+$"},
    enableTLS={"enum": ["true", "false"]},
)
_BEHAVIOR = _object(
    scaleDown=_object(stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600}),
    scaleUp=_object(stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600}),
)
_CLUSTERED = _object(deletionPolicy={"enum": ["Delete", "Retain"]}, pvcDeletion=SWITCH, values=ANYTHING)

SPECS = {
    "keda.sh/v1alpha1/ScaledObject": _object(
        ("scaleTargetRef", "triggers"),
        scaleTargetRef=_object(("name",), name=TEXT, kind=TEXT, apiVersion=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        advanced=_object(horizontalPodAutoscalerConfig=_object(behavior=_BEHAVIOR)),
        triggers=_list(
            _object(("type", "metadata"), type={"const": "redis"}, metadata=_SCALER, authenticationRef=NAME)
        ),
    ),
    "keda.sh/v1alpha1/TriggerAuthentication": _object(
        ("secretTargetRef",),
        secretTargetRef=_list(
            _object(("parameter", "name", "key"), parameter={"enum": ["password", "username"]}, name=TEXT, key=TEXT)
        ),
    ),
    "milvus.io/v1beta1/Milvus": _object(
        ("mode", "components", "dependencies"),
        mode={"enum": ["standalone", "cluster"]},
        components=_object(("image",), image=TEXT, env=_list(ANYTHING), resources=ANYTHING),
        config=ANYTHING,
        dependencies=_object(
            msgStreamType={"enum": ["pulsar", "kafka", "rocksmq", "woodpecker"]},
            etcd=_object(external=SWITCH, endpoints=_list(TEXT), inCluster=_CLUSTERED),
            storage=_object(
                external=SWITCH, type={"enum": ["MinIO", "S3", "Azure"]}, endpoint=TEXT, secretRef=TEXT,
                inCluster=_CLUSTERED,
            ),
        ),
    ),
}  # fmt: skip

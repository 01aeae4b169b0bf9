"""Fields that the files of infra/ may have, as JSON Schemas without room for others.

Names and types are those of KubeRay 1.7.0 (helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml), of Kubernetes 1.33
(batch/v1 Job) and of SkyPilot 0.12 (docs/source/reference/yaml-spec.rst, examples/pools.rst); of each object those that
are of use here.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def fields(*required: str, **known: Schema) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


def rows(of: Schema) -> Schema:
    return {"type": "array", "items": of, "minItems": 1}


def choice(*values: str) -> Schema:
    return {"enum": list(values)}


QUANTITIES = fields(requests=TEXTS, limits=TEXTS)
CLAIM = fields("accessModes", "resources", accessModes=rows(TEXT), resources=QUANTITIES, storageClassName=TEXT)
VOLUME = fields(
    "name",
    name=TEXT,
    ephemeral=fields("volumeClaimTemplate", volumeClaimTemplate=fields("spec", spec=CLAIM)),
    emptyDir=fields(medium=TEXT, sizeLimit=TEXT),
)
CONTAINER = fields(
    *("name", "image"),
    name=TEXT,
    image=TEXT,
    args=rows(TEXT),
    env=rows(fields("name", name=TEXT, value=TEXT)),
    envFrom=rows(fields("secretRef", secretRef=fields("name", name=TEXT))),
    resources=QUANTITIES,
    securityContext=fields(allowPrivilegeEscalation=FLAG, capabilities=fields(drop=rows(TEXT))),
    volumeMounts=rows(fields("name", "mountPath", name=TEXT, mountPath=TEXT)),
)
POD = fields(
    "containers",
    containers=rows(CONTAINER),
    restartPolicy=choice("Always", "OnFailure", "Never"),
    serviceAccountName=TEXT,
    automountServiceAccountToken=FLAG,
    terminationGracePeriodSeconds=NUMBER,
    nodeSelector=TEXTS,
    tolerations=rows(fields(key=TEXT, operator=choice("Exists", "Equal"), value=TEXT, effect=TEXT)),
    securityContext=fields(
        runAsNonRoot=FLAG, runAsUser=NUMBER, fsGroup=NUMBER, seccompProfile=fields("type", type=TEXT)
    ),
    volumes=rows(VOLUME),
)
POD_TEMPLATE = fields("spec", metadata=fields(labels=TEXTS, annotations=TEXTS), spec=POD)


def manifest(version: str, kind: str, spec: Schema) -> Schema:
    known = {"apiVersion": choice(version), "kind": choice(kind), "metadata": fields("name", name=TEXT), "spec": spec}
    return fields(*known, **known)


RAY_CLUSTER = fields(
    *("headGroupSpec", "workerGroupSpecs", "rayVersion"),
    rayVersion=TEXT,
    authOptions=fields("mode", mode=choice("disabled", "token"), secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(version=choice("v1", "v2"), idleTimeoutSeconds=NUMBER, resources=QUANTITIES),
    headGroupSpec=fields("template", rayStartParams=TEXTS, template=POD_TEMPLATE),
    workerGroupSpecs=rows(
        fields(
            *("groupName", "minReplicas", "maxReplicas", "template"),
            groupName=TEXT,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            idleTimeoutSeconds=NUMBER,
            rayStartParams=TEXTS,
            template=POD_TEMPLATE,
        )
    ),
)
RAY_JOB = manifest(
    "ray.io/v1",
    "RayJob",
    fields(
        *("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        backoffLimit=NUMBER,
        activeDeadlineSeconds=NUMBER,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=NUMBER,
        submissionMode=choice("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
        rayClusterSpec=RAY_CLUSTER,
    ),
)
EXIT_CODES = fields("operator", "values", containerName=TEXT, operator=choice("In", "NotIn"), values=rows(NUMBER))
RULE = fields(
    "action",
    action=choice("FailJob", "FailIndex", "Ignore", "Count"),
    onExitCodes=EXIT_CODES,
    onPodConditions=rows(fields("type", type=TEXT, status=TEXT)),
)
INDEXED_JOB = manifest(
    "batch/v1",
    "Job",
    fields(
        "template",
        completionMode=choice("Indexed"),
        completions=NUMBER,
        parallelism=NUMBER,
        backoffLimitPerIndex=NUMBER,
        maxFailedIndexes=NUMBER,
        podFailurePolicy=fields("rules", rules=rows(RULE)),
        template=POD_TEMPLATE,
    ),
)
MACHINE = fields(
    accelerators={"type": "object", "additionalProperties": NUMBER},
    cpus=TEXT,
    memory=TEXT,
    use_spot=FLAG,
    disk_size=NUMBER,
    infra=TEXT,
)
SKY_POOL = fields(
    "pool", "resources", pool=fields("workers", workers=NUMBER), workdir=TEXT, resources=MACHINE, setup=TEXT, envs=TEXTS
)
SKY_JOB = fields("run", "resources", name=TEXT, resources=MACHINE, secrets={"type": "object"}, envs=TEXTS, run=TEXT)

"""The fields of KubeRay's resources that this project uses, strictly: by its API reference, ray.io/v1.

Pods within them are left to Kubernetes' own schema. An unknown field, which the operator would silently
prune, is an error here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=0)]
Pod = dict[str, Any]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class HeadGroup(Strict):
    rayStartParams: dict[str, str]
    template: Pod
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    enableIngress: bool = False
    headService: dict[str, Any] | None = None


class WorkerGroup(Strict):
    groupName: str
    rayStartParams: dict[str, str]
    template: Pod
    replicas: Count = 0
    minReplicas: Count = 0
    maxReplicas: Count = 2**31 - 1
    numOfHosts: Annotated[int, Field(ge=1)] = 1
    idleTimeoutSeconds: Count | None = None
    suspend: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> WorkerGroup:
        if not self.minReplicas <= self.replicas <= self.maxReplicas:
            raise ValueError(f"{self.groupName}: replicas must lie between their least and most")
        return self


class Autoscaler(Strict):
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] = "Default"
    idleTimeoutSeconds: Count = 60
    resources: dict[str, Any] | None = None
    image: str | None = None
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    env: list[dict[str, Any]] = []
    envFrom: list[dict[str, Any]] = []
    volumeMounts: list[dict[str, Any]] = []
    securityContext: dict[str, Any] | None = None
    version: Literal["v1", "v2"] | None = None


class Auth(Strict):
    mode: Literal["token", "disabled"]


class RayClusterSpec(Strict):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    rayVersion: str = ""
    enableInTreeAutoscaling: bool = False
    autoscalerOptions: Autoscaler | None = None
    authOptions: Auth | None = None
    headServiceAnnotations: dict[str, str] = {}
    gcsFaultToleranceOptions: dict[str, Any] | None = None
    suspend: bool = False

    @model_validator(mode="after")
    def _distinct(self) -> RayClusterSpec:
        names = [group.groupName for group in self.workerGroupSpecs]
        if len(set(names)) < len(names):
            raise ValueError(f"worker groups must have different names, got {names}")
        return self

    def pods(self) -> list[Pod]:
        """Templates of all its pods."""
        return [self.headGroupSpec.template, *(group.template for group in self.workerGroupSpecs)]


class Submitter(Strict):
    backoffLimit: Count = 2


class RayJobSpec(Strict):
    entrypoint: str
    rayClusterSpec: RayClusterSpec
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = (
        "K8sJobMode"
    )
    backoffLimit: Count = 0
    activeDeadlineSeconds: Annotated[int, Field(gt=0)] | None = None
    submitterConfig: Submitter | None = None
    submitterPodTemplate: Pod | None = None
    runtimeEnvYAML: str = ""
    metadata: dict[str, str] = {}
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: Count = 0
    entrypointNumCpus: float = 0
    entrypointNumGpus: float = 0
    suspend: bool = False

    @model_validator(mode="after")
    def _as_the_operator_wants(self) -> RayJobSpec:
        if self.ttlSecondsAfterFinished and not self.shutdownAfterJobFinishes:
            raise ValueError("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
        return self


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, Any]
    spec: RayJobSpec

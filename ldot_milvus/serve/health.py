"""Routes of the service's health and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from ldot_milvus.serve.answers import PROBLEMS
from ldot_milvus.serve.metrics import CONTENT_TYPE
from ldot_milvus.serve.service import ServiceOf

router = APIRouter(tags=["health"], responses=PROBLEMS)


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "live"}


@router.get("/health/ready")
async def ready(service: ServiceOf) -> JSONResponse:
    """Say that the model is loaded and searches are answered; else 503."""
    service.check_ready()
    return JSONResponse({"status": "ready"})


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: ServiceOf) -> Response:
    """Return the metrics of this process for Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)

"""Routes of the service's health."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from ldot_milvus.serve.answers import PROBLEMS
from ldot_milvus.serve.service import ServiceOf

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "live"}


@router.get("/health/ready", responses={503: PROBLEMS[503]})
async def ready(service: ServiceOf) -> JSONResponse:
    """Say that the model is loaded and searches are answered; else 503."""
    service.check_ready()
    return JSONResponse({"status": "ready"})

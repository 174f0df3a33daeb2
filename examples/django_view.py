"""Serve searches from a Django view. Run ``make demo`` first, then from the repository's root:

    pip install django gunicorn
    OMP_NUM_THREADS=1 PYTHONPATH=examples gunicorn --preload --workers 4 --threads 4 django_view:application
    curl 'http://127.0.0.1:8000/search?text=a+long+red+bus&k=3'

The ``LDOT_`` settings name store, collection and model. With ``--preload`` the model is loaded once, before gunicorn
forks its workers, which share its memory. In a project of your own, the settings and ``application`` already exist.
"""

from __future__ import annotations

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET

from ldot_milvus import InputError, LdotError, Retriever, UsageError

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", "only for this example"),
)

retriever = Retriever.from_settings()


@require_GET
def search(request: HttpRequest) -> JsonResponse:
    """Return the k best photos for a text."""
    try:
        k, rerank = int(request.GET.get("k", 5)), int(request.GET.get("rerank", 20))
        hits = retriever.search(request.GET.get("text", ""), k=min(k, 100), rerank=min(rerank, 100))
    except ValueError:
        return JsonResponse({"error": "k and rerank are whole numbers"}, status=400)
    except (UsageError, InputError) as error:
        return JsonResponse({"code": error.code, "error": str(error)}, status=400)
    except LdotError as error:
        return JsonResponse({"code": error.code, "error": str(error)}, status=503)
    return JsonResponse([hit.to_dict() for hit in hits], safe=False)


urlpatterns = [path("search", search)]
application = get_wsgi_application()

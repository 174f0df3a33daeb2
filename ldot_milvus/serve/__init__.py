"""The HTTP service of ``ldot serve``: search by text, photo and row, for several clients at once.

A request passes through these modules in order::

    app         one FastAPI application, its routers and middlewares
    schemas     JSON -> checked values; what answers look like
    searches, rows, health   the routes
    service     one model, and the collections of one store
    answers     errors -> status and JSON

``running`` runs the application with uvicorn.
"""

"""The HTTP service of ``ldot serve``: search by text, photo and row, for several clients at once.

A request passes through these modules in order::

    connections   sockets -> requests, with limits on idle and slow clients
    observing     a request id, a line in the log, a count in the metrics
    guards        host names, pages of other sites, the token
    app           one FastAPI application: limits on bodies, and a router for each group of routes
    schemas       JSON -> checked values
    searches, rows, ingest, session, health   the routes
    batching      searches that wait -> batches, which a few threads compute
    service       one model, and the collections of one store -> hits as JSON
    uploads       uploaded photos -> a folder -> a run of the ingestion
    answers       errors -> status and JSON

``metrics`` has the counts and durations. ``running`` runs the application with uvicorn.
"""

"""From sources to rows: ``ingestor`` takes one chunk of them into a store, ``chunks`` sees that none is lost."""

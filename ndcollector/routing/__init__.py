"""Which events an output gets, and in which form: `streams`, `where`, `sample`, `transform`.

Between decoding and delivery, so that what is left out counts as filtered in the ledger, and a dead letter holds the
event as it was to be sent. `format` comes last of all, inside the delivery chain (see ndcollector/formats).
"""

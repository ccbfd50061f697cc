"""The ledger: the database is the truth. Tables, the states of a job, and the verbs on them.

Every verb takes a session inside a transaction (`Database.transaction`); none of them talks to
the network, trains or waits. What a tenant may see is always filtered by `tenant_id` here.
"""

-- Which node is just deleting the bytes of a blob: the instant of its claim, null while nobody is.
-- An upload of the same bytes waits for the claim to end, and stores them again.
ALTER TABLE blob_garbage ADD COLUMN claimed_at {int};

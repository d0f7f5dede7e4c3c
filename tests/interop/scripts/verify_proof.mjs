// Verify a com.atproto.sync.getRecord answer with the TypeScript repository package.
// Usage: verify_proof.mjs DID SIGNING_DID_KEY COLLECTION RKEY CID|null FILE
import { readFile } from 'node:fs/promises'
import { verifyProofs } from '@atproto/repo'
import { parseCid } from '@atproto/lex-data'

const [did, key, collection, rkey, cid, file] = process.argv.slice(2)
const bytes = new Uint8Array(await readFile(file))
const claim = { collection, rkey, cid: cid === 'null' ? null : parseCid(cid) }
const result = await verifyProofs(bytes, [claim], did, key)
console.log(JSON.stringify({ verified: result.verified.length, unverified: result.unverified.length }))

// Verify CAR exports with the TypeScript repository package: hashes, tree, signature, DID.
// Usage: verify_car.mjs DID SIGNING_DID_KEY FILE   Prints {records, commit}.
import { readFile } from 'node:fs/promises'
import { readCarWithRoot, verifyRepoCar } from '@atproto/repo'

const [did, key, file] = process.argv.slice(2)
const bytes = new Uint8Array(await readFile(file))
const { root } = await readCarWithRoot(bytes)
const verified = await verifyRepoCar(bytes, did, key)
console.log(
  JSON.stringify({
    commit: root.toString(),
    records: verified.creates.map(({ collection, rkey, cid }) => [`${collection}/${rkey}`, cid.toString()]),
  }),
)

// Makes identities with the official PLC library at the directory PLC_URL, some with a troubled
// life. Prints {name: did} as JSON.
import lib from '@did-plc/lib'
import crypto from '@atproto/crypto'

const client = new lib.Client(process.argv[2])
const { Secp256k1Keypair, P256Keypair } = crypto.default ?? crypto
const high = await P256Keypair.create({ exportable: true })
const low = await Secp256k1Keypair.create({ exportable: true })
const signing = await Secp256k1Keypair.create({ exportable: true })

async function create(handle) {
  return await client.createDid({
    signingKey: signing.did(),
    rotationKeys: [high.did(), low.did()],
    handle,
    pds: 'https://pds.example.com',
    signer: low,
  })
}

const plain = await create('plain.example.com')

const changed = await create('changed.example.com')
await client.updateHandle(changed, low, 'renamed.example.com')
await client.updateAtprotoKey(changed, high, (await P256Keypair.create()).did())
await client.updatePds(changed, low, 'https://new.example.com')

const recovered = await create('recovered.example.com')
const genesis = await client.getLastOp(recovered)
await client.updateHandle(recovered, low, 'stolen.example.com')
await client.updateRotationKeys(recovered, low, [low.did()])
const back = await lib.updateHandleOp(genesis, high, 'back.example.com')
await client.sendOperation(recovered, back)

const ended = await create('ended.example.com')
await client.tombstone(ended, high)

console.log(JSON.stringify({ plain, changed, recovered, ended }))

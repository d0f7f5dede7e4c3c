// The reference PDS, configured by its environment, on loopback. Prints its URL.
import { PDS, envToCfg, envToSecrets, readEnv } from '@atproto/pds'

const env = readEnv()
const pds = await PDS.create(envToCfg(env), envToSecrets(env))
await pds.start()
console.log(`http://localhost:${env.port}`)

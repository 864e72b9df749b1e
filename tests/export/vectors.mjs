// Prints the vectors of the texts on stdin: node vectors.mjs FOLDER DTYPE < texts.json
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const [folder, dtype] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const embed = await pipeline("feature-extraction", basename(folder), { dtype });
const vectors = await embed(JSON.parse(readFileSync(0)), { pooling: "cls", normalize: true });
console.log(JSON.stringify(vectors.tolist()));

// Prints the scores of a query's passages on stdin: node scores.mjs FOLDER DTYPE < {"query": "", "passages": []}
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import { AutoModelForSequenceClassification, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, dtype] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const tokenizer = await AutoTokenizer.from_pretrained(basename(folder));
const model = await AutoModelForSequenceClassification.from_pretrained(basename(folder), { dtype });
const { query, passages } = JSON.parse(readFileSync(0));
const pairs = tokenizer(passages.map(() => query), { text_pair: passages, padding: true, truncation: true });
const { logits } = await model(pairs);
console.log(JSON.stringify(logits.sigmoid().tolist().flat()));

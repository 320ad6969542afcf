#!/usr/bin/env bash
# Redis, PostgreSQL, S3 (moto) and Kafka on the ports of profiles/services.yaml, for as long as a
# command runs:   infra/services.sh FOLDER COMMAND...
# Their data and logs lie in FOLDER, which is emptied before; passwords are made anew each time and
# are known to the command's environment alone. Whatever the command's end, nothing is left running.
set -euo pipefail

fail() { printf 'headrace: %s\n' "$*" >&2; exit 4; }

[ $# -ge 2 ] || fail 'usage: infra/services.sh FOLDER COMMAND...'
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$1
shift
redis_port=6479 postgres_port=5532 s3_port=9300 kafka_port=9192 controller_port=9193
[ ! -e "$folder" ] || [ -e "$folder/.services" ] || fail "$folder is not a folder of this script"
rm -rf "$folder"
mkdir -p "$folder"/{redis,kafka}
folder=$(cd "$folder" && pwd)
touch "$folder/.services"

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for port in $redis_port $postgres_port $s3_port $kafka_port $controller_port; do
    ! listens "$port" || fail "port $port on 127.0.0.1 is taken; end the program that holds it"
done
binaries=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1)
[ -n "$binaries" ] || fail 'PostgreSQL is missing; run infra/setup/postgres.sh as root'
command -v redis-server >/dev/null || fail 'Redis is missing; run infra/setup/redis.sh as root'
jars="$here/out/kafka/broker"
[ -d "$jars" ] || fail 'the jars of Kafka are missing; run infra/setup/kafka.sh'

secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }
export HEADRACE_PROFILE=services HEADRACE_REDIS_PASSWORD HEADRACE_POSTGRES_PASSWORD
export HEADRACE_KAFKA_SASL_PASSWORD
HEADRACE_KAFKA_SASL_PASSWORD=$(secret)
HEADRACE_REDIS_PASSWORD=$(secret)
HEADRACE_POSTGRES_PASSWORD=$(secret)
export AWS_ENDPOINT_URL=http://127.0.0.1:$s3_port AWS_DEFAULT_REGION=us-east-1
export AWS_ACCESS_KEY_ID=headrace AWS_SECRET_ACCESS_KEY
AWS_SECRET_ACCESS_KEY=$(secret)

# PostgreSQL refuses to run as root, and its user must reach its files
as_postgres=()
data="$folder/postgres"
if [ "$(id -u)" -eq 0 ]; then
    as_postgres=(runuser -u postgres --)
    data=$(mktemp -d /tmp/headrace-postgres.XXXXXX)
    chown postgres "$data"
fi
pids=()
stop() {
    local code=$?
    trap - EXIT
    "${as_postgres[@]}" "$binaries/pg_ctl" -D "$data/db" -m fast -w stop >/dev/null 2>&1 || true
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true
    wait || true
    [ "$data" = "$folder/postgres" ] || rm -rf "$data"
    exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$data"
printf '%s' "$HEADRACE_POSTGRES_PASSWORD" | "${as_postgres[@]}" bash -c "umask 077; cat >'$data/password'"
"${as_postgres[@]}" "$binaries/initdb" -D "$data/db" -U headrace -A scram-sha-256 \
    --pwfile="$data/password" >"$folder/postgres.log" 2>&1 ||
    fail "initdb failed; see $folder/postgres.log"
"${as_postgres[@]}" "$binaries/pg_ctl" -D "$data/db" -w start -l "$data/log" \
    -o "-p $postgres_port -h 127.0.0.1 -k '$data' -c max_connections=200" \
    >>"$folder/postgres.log" 2>&1 || { cat "$data/log" >&2; fail 'PostgreSQL did not start'; }
rm "$data/password"
for name in feast mlflow airflow; do
    PGPASSWORD=$HEADRACE_POSTGRES_PASSWORD "$binaries/createdb" -h 127.0.0.1 -p $postgres_port \
        -U headrace "$name"
done

(umask 077 && printf 'requirepass %s\n' "$HEADRACE_REDIS_PASSWORD" >"$folder/redis/redis.conf")
redis-server "$folder/redis/redis.conf" --port $redis_port --bind 127.0.0.1 --appendonly yes \
    --maxmemory-policy noeviction --dir "$folder/redis" >"$folder/redis.log" &
pids+=($!)
"$here/.venv/bin/moto_server" -H 127.0.0.1 -p $s3_port >"$folder/s3.log" 2>&1 &
pids+=($!)

(umask 077 && cat >"$folder/kafka/server.properties") <<END
process.roles=broker,controller
node.id=1
listeners=SASL_PLAINTEXT://127.0.0.1:$kafka_port,CONTROLLER://127.0.0.1:$controller_port
advertised.listeners=SASL_PLAINTEXT://127.0.0.1:$kafka_port
inter.broker.listener.name=SASL_PLAINTEXT
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="headrace" password="$HEADRACE_KAFKA_SASL_PASSWORD" user_headrace="$HEADRACE_KAFKA_SASL_PASSWORD";
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:$controller_port
listener.security.protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$folder/kafka/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
auto.create.topics.enable=false
END
java=(java -Xmx256m -XX:TieredStopAtLevel=1 -cp "$jars/*")
"${java[@]}" kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qg \
    -c "$folder/kafka/server.properties" >"$folder/kafka.log" 2>&1 ||
    fail "Kafka's storage was not formatted; see $folder/kafka.log"
"${java[@]}" kafka.Kafka "$folder/kafka/server.properties" >>"$folder/kafka.log" 2>&1 &
pids+=($!)

for port in $redis_port $postgres_port $s3_port $kafka_port; do
    for _ in $(seq 240); do
        listens "$port" && continue 2
        sleep 0.5
    done
    fail "nothing listens on port $port after two minutes; see the logs in $folder"
done
"$here/.venv/bin/python" -c '
import fsspec
fsspec.filesystem("s3").mkdir("headrace")' || fail "the bucket was not made; see $folder/s3.log"
printf 'headrace: Redis, PostgreSQL, S3 and Kafka are ready; logs in %s\n' "$folder" >&2
"$@"

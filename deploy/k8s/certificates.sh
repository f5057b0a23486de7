#!/bin/sh
# Create a certificate authority and the certificates of a mesh, and print them as Secrets:
#
#   deploy/k8s/certificates.sh NAMESPACE [FOLDER] | kubectl apply -f -
#
# FOLDER (default: stepflow-tls) holds the authority and a client certificate. Keep ca.key secret. A second run with the
# same folder issues new certificates from the same authority. DAYS sets their validity (default: 365). On a cluster
# with cert-manager, use cert-manager instead.
set -eu
namespace=${1:?usage: certificates.sh NAMESPACE [FOLDER]}
folder=${2:-stepflow-tls}
days=${DAYS:-365}
umask 077
mkdir -p "$folder"
cd "$folder"

if [ ! -e ca.crt ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=stepflow-mesh authority" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -keyout ca.key -out ca.crt 2>/dev/null
fi

# issue NAME SUBJECT-ALTERNATIVE-NAMES
issue() {
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" \
    -keyout "$1.key" -out "$1.csr" 2>/dev/null
  printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n' "$2" >"$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days "$days" -extfile "$1.ext" \
    -out "$1.crt" 2>/dev/null
  rm "$1.csr" "$1.ext"
}

# secret NAME CERTIFICATE
secret() {
  printf -- '---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata:\n  name: %s\n  namespace: %s\ndata:\n' \
    "$1" "$namespace"
  for pair in ca.crt=ca.crt tls.crt="$2.crt" tls.key="$2.key"; do
    printf '  %s: %s\n' "${pair%%=*}" "$(base64 <"${pair#*=}" | tr -d '\n')"
  done
}

members=
for number in 0 1 2; do
  members="$members,DNS:etcd-$number.etcd.$namespace.svc,DNS:etcd-$number.etcd.$namespace.svc.cluster.local"
done
plane=stepflow-control-plane
issue etcd "DNS:localhost,IP:127.0.0.1$members"
issue services "DNS:stepflow-mesh,DNS:localhost,IP:127.0.0.1,DNS:$plane,DNS:$plane.$namespace,DNS:$plane.$namespace.svc,DNS:$plane.$namespace.svc.cluster.local"
issue client "DNS:client"
secret etcd-tls etcd
secret stepflow-tls services

{{- define "quire.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}-operator
{{- end -}}

{{- define "quire.selector" -}}
app.kubernetes.io/name: quire-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Not `managed-by: quire`: the operator's watches select that, and this is not its own work. */}}
{{- define "quire.labels" -}}
{{ include "quire.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "quire.router" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}-router
{{- end -}}

{{- define "quire.router.selector" -}}
app.kubernetes.io/name: quire-router
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "quire.router.labels" -}}
{{ include "quire.router.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* Where clients send requests. */}}
{{- define "quire.router.url" -}}
{{- ternary "https" "http" (ne .Values.router.tlsSecret "") -}}://{{ include "quire.router" . }}.{{ .Release.Namespace }}.{{ .Values.clusterDomain }}/v1
{{- end -}}
